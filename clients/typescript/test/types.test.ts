import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, it } from "vitest";

it("the types are those of the API's description", () => {
  const root = resolve(import.meta.dirname, "..");
  const made = execFileSync("npx", ["openapi-typescript", "../../docs/openapi.json"], { cwd: root, stdio: ["ignore", "pipe", "ignore"] });
  expect(readFileSync(resolve(root, "src/openapi.ts"), "utf8"), "`npm run types` writes them anew").toBe(made.toString());
});

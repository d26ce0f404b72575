import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts", "test/**/*.test.tsx"],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Each of them starts servers and browsers of its own, on a machine with two cores.
    fileParallelism: false,
  },
});

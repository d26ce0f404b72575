export { type ChannelTokenOptions, type ClientOptions, type Page, type RerunOptions, type StartOptions, type Step, Stepwell, type StreamToken, type TokenOptions, type Workflow, type WorkflowVersion } from "./client.js";
export { StepwellError } from "./errors.js";
export { type ChannelEvent, isTerminal, type Json, type Run, type RunEvent, type RunStatus, type WaitReason } from "./events.js";
export { RunStore, type Snapshot, type Source } from "./store.js";
export { type Credential, type SubscribeOptions } from "./subscribe.js";
export {
  emptyView,
  hasEnded,
  type RunView,
  seeEvent,
  seeEvents,
  stepName,
  type StepView,
  textOf,
  type Update,
  waitsForPerson,
} from "./view.js";

// Drives a server with the SDK that still has templates, volumes and pools.

import { SandboxClient } from "langsmith-classic/experimental/sandbox";
import { assert, collect, failsAs, options, step } from "./check.mjs";

const client = new SandboxClient(options);

await step("volumes", async () => {
  const v = await client.createVolume("data", { size: "1Gi" });
  assert.equal(v.name, "data");
  assert.equal((await client.getVolume("data")).size, "1Gi");
  assert.deepEqual((await client.listVolumes()).map((x) => x.name), ["data"]);
  assert.equal((await client.updateVolume("data", { size: "2Gi" })).size, "2Gi");
  await assert.rejects(() => client.updateVolume("data", { size: "1Gi" }), /shrink/);
});

await step("templates", async () => {
  const t = await client.createTemplate("plain", { image: "host" });
  assert.equal(t.resources.memory, "512Mi");
  assert.equal((await client.updateTemplate("plain", { newName: "base" })).name, "base");
  await failsAs("LangSmithResourceNotFoundError", () => client.getTemplate("plain"));
});

await step("pools", async () => {
  const p = await client.createPool("warm", { templateName: "base", replicas: 1 });
  assert.equal(p.replicas, 1);
  assert.deepEqual((await client.listPools()).map((x) => x.name), ["warm"]);
  const warm = await client.createSandbox("base", { name: "from-a-pool" });
  assert.equal((await warm.run("echo warm")).stdout, "warm\n");
  await warm.delete();
  await failsAs("LangSmithResourceAlreadyExistsError", () => client.createPool("warm", { templateName: "base", replicas: 1 }));
  assert.equal((await client.updatePool("warm", { newName: "cold", replicas: 0 })).replicas, 0);
  assert.equal((await client.getPool("cold")).name, "cold");
  await client.deletePool("cold");
});

const sb = await client.createSandbox("base", { name: "classic" });
await step("a sandbox", async () => {
  assert.equal(sb.status, "ready");
  assert.equal((await client.getSandboxStatus("classic")).status, "ready");
  assert.ok((await client.listSandboxes()).some((x) => x.name === "classic"));
});

await step("run and stream", async () => {
  const r = await sb.run("echo out; echo err >&2; exit 3");
  assert.deepEqual([r.stdout, r.stderr, r.exit_code], ["out\n", "err\n", 3]);
  const handle = await sb.run("for i in 1 2 3; do echo $i; sleep 0.05; done", { wait: false });
  assert.equal(await collect(handle), "1\n2\n3\n");
  assert.equal((await handle.result).exit_code, 0);
});

await step("input, kill and reconnect", async () => {
  const cat = await sb.run("read line; echo got $line", { wait: false });
  cat.sendInput("text\n");
  assert.equal((await cat.result).stdout, "got text\n");
  const long = await sb.run("echo first; sleep 1000", { wait: false });
  const again = await sb.reconnect(long.commandId);
  for await (const chunk of again) {
    assert.equal(chunk.data, "first\n");
    break;
  }
  long.kill();
  assert.equal((await long.result).exit_code, 137);
});

await step("files", async () => {
  await sb.write("notes/a.txt", "héllo");
  assert.equal(new TextDecoder().decode(await sb.read("notes/a.txt")), "héllo");
  await failsAs("LangSmithResourceNotFoundError", () => sb.read("missing"));
});

await step("snapshots", async () => {
  const snap = await sb.captureSnapshot("state");
  assert.equal(snap.status, "ready");
  const copy = await client.createSandbox(undefined, { snapshotId: snap.id, name: "copy" });
  assert.equal((await copy.run("cat notes/a.txt")).stdout, "héllo");
  assert.ok((await client.listSnapshots()).some((s) => s.id === snap.id));
  await copy.delete();
  await client.deleteSnapshot(snap.id);
});

await step("stop and start", async () => {
  await sb.stop();
  assert.equal((await client.getSandboxStatus("classic")).status, "stopped");
  await sb.start();
  assert.equal((await sb.run("cat notes/a.txt")).stdout, "héllo");
});

await step("errors and deletion", async () => {
  await failsAs("LangSmithResourceInUseError", () => client.deleteTemplate("base"));
  await sb.delete();
  await client.deleteTemplate("base");
  await client.deleteVolume("data");
  assert.deepEqual(await client.listSandboxes(), []);
});

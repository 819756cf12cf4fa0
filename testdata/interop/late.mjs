// Drives a server with the newest SDK: snapshots, ranges, search, service URLs.

import { SandboxClient } from "langsmith-late/sandbox";
import { assert, collect, failsAs, options, step } from "./check.mjs";

const client = new SandboxClient(options);
const sb = await client.createSandbox({ name: "late", labels: { team: "a" } });

await step("a sandbox", async () => {
  assert.equal(sb.status, "ready");
  assert.ok((await client.listSandboxes()).some((x) => x.name === "late"));
});

await step("run and stream", async () => {
  const r = await sb.run("cat; echo out; echo err >&2; exit 3");
  assert.deepEqual([r.stdout, r.stderr, r.exit_code], ["out\n", "err\n", 3]);
  const handle = await sb.run("printf 'é😀'; sleep 0.05; echo", { wait: false });
  assert.equal(await collect(handle), "é😀\n");
  await failsAs("LangSmithCommandTimeoutError", () => sb.run("sleep 1000", { timeout: 1 }));
});

await step("input and its end", async () => {
  const cat = await sb.run("cat", { wait: false, closeInput: false });
  cat.sendInput("text\n");
  cat.closeInput();
  assert.equal((await cat.result).stdout, "text\n");
  const long = await sb.run("sleep 1000", { wait: false });
  long.kill();
  assert.equal((await long.result).exit_code, 137);
});

await step("reconnect", async () => {
  const first = await sb.run("echo one; read line; echo two $line", { wait: false, closeInput: false });
  const again = await sb.reconnect(first.commandId);
  for await (const chunk of again) {
    assert.equal(chunk.data, "one\n");
    break;
  }
  first.sendInput("more\n");
  assert.equal((await first.result).stdout, "one\ntwo more\n");
  const rest = await sb.reconnect(first.commandId, { stdoutOffset: 4 });
  assert.equal((await rest.result).stdout, "two more\n");
});

await step("run_config", async () => {
  assert.equal((await sb.run("echo $A; pwd", { runConfig: { work_dir: "/", env_vars: { A: "1" } } })).stdout, "1\n/\n");
});

await step("files and ranges", async () => {
  await sb.write("digits", "0123456789");
  const stat = await sb.stat("digits");
  assert.equal(stat.size_bytes ?? stat.sizeBytes, 10);
  const part = await sb.readRange("digits", { start: 2, end: 4 });
  assert.equal(new TextDecoder().decode(part.content), "234");
  const tail = await sb.readRange("digits", { suffixBytes: 3 });
  assert.deepEqual([new TextDecoder().decode(tail.content), tail.start], ["789", 7]);
  const stale = await sb.readRange("digits", { start: 2, end: 4, ifRange: '"x"' });
  assert.deepEqual([new TextDecoder().decode(stale.content), stale.partial], ["0123456789", false]);
  await assert.rejects(() => sb.readRange("digits", { start: 10 }), /bytes \*\/10/);
  await failsAs("LangSmithResourceNotFoundError", () => sb.stat("missing"));
  const same = await sb.readRange("digits", { start: 0, ifNoneMatch: stat.etag });
  assert.equal(same.unchanged, true);
});

await step("search", async () => {
  await sb.run("mkdir -p tree/sub; echo needle > tree/sub/a.txt; touch tree/b.md");
  const root = (await sb.run("pwd")).stdout.trim();
  const found = await sb.glob("**/*.txt", root + "/tree");
  assert.deepEqual(found.matches.map((m) => m.path), [root + "/tree/sub/a.txt"]);
  assert.equal((await sb.ls(root + "/tree")).matches.length, 2);
  const lines = await sb.grep("needle", root + "/tree");
  assert.equal(lines.matches[0].line, 1);
});

await step("snapshots", async () => {
  const snap = await sb.captureSnapshot("state");
  assert.equal(snap.status, "ready");
  assert.ok((await client.listSnapshots({ nameContains: "STA" })).some((s) => s.id === snap.id));
  const copy = await client.createSandbox(snap.id, { name: "copy" });
  assert.equal((await copy.run("cat digits")).stdout, "0123456789");
  await copy.delete();
  await client.deleteSnapshot(snap.id);
});

await step("stop and start", async () => {
  await sb.stop();
  await sb.start();
  assert.equal((await sb.run("cat digits")).stdout, "0123456789");
});

await step("service URLs", async () => {
  const link = await client.serviceUrl("late", { port: 9 });
  assert.ok(await link.token());
  assert.equal((await link.fetch("/")).status, 502); // nobody listens
  await assert.rejects(() => client.serviceUrl("late", { port: 9, access: "restricted" }), /access/);
});

await step("updates", async () => {
  assert.equal((await client.updateSandbox("late", { newName: "later", idleTtlSeconds: 1200 })).name, "later");
  assert.equal((await client.getSandbox("later")).labels.team, "a");
  await client.updateSandbox("later", { newName: "late" });
});

await step("download URLs", async () => {
  const link = await sb.generateDownloadURL("digits");
  const answer = await fetch(link.download_url ?? link.downloadUrl, { headers: { Range: "bytes=8-" } });
  assert.deepEqual([answer.status, await answer.text()], [206, "89"]);
});

await step("refusals by name", async () => {
  await assert.rejects(() => client.createSandbox({ name: "no", persistent: false }), /persistent/);
  await assert.rejects(() => client.createSandbox({ name: "no", accessDelegation: { mode: "INHERIT" } }), /access_delegation/);
});

await step("deletion", async () => {
  await sb.delete();
  await failsAs("LangSmithResourceNotFoundError", () => client.getSandbox("late"));
});

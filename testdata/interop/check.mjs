// What the two SDK scripts share: one numbered step after the other, and a
// server named by SBX_STAR_ENDPOINT and SBX_STAR_API_KEY.

import assert from "node:assert/strict";

export { assert };
export const options = { apiEndpoint: process.env.SBX_STAR_ENDPOINT, apiKey: process.env.SBX_STAR_API_KEY };

let passed = 0;

// step runs one check and says so.
export async function step(name, check) {
  try {
    await check();
  } catch (err) {
    console.error(`${name}: ${err.stack}`);
    process.exit(1);
  }
  console.log(`ok ${++passed} ${name}`);
}

// failsAs runs what must fail with an error of this name.
export async function failsAs(name, run) {
  await assert.rejects(run, (err) => err.name === name || assert.fail(`want ${name}, got ${err.name}: ${err.message}`));
}

// collect reads a command to its end.
export async function collect(handle) {
  let text = "";
  for await (const chunk of handle) if (chunk.stream === "stdout") text += chunk.data;
  return text;
}

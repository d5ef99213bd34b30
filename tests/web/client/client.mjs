// A client of LiveStore's own: `node client.mjs NAME STORE URL FOLDER`, with TOKEN in the environment, reads commands,
// one JSON array a line, and answers each with a line of JSON. It goes on with what the folder has.
import readline from 'node:readline'
import { makeAdapter } from '@livestore/adapter-node'
import { createStorePromise } from '@livestore/livestore'
import { makeWsSync } from '@livestore/sync-cf/client'
// Copies of the page's, so that they find this folder's packages.
import { contiguous } from './build/contiguous.js'
import { events, schema, tables } from './build/schema.js'

const [, , clientId, storeId, url, baseDirectory] = process.argv
const store = await createStorePromise({
  adapter: makeAdapter({
    storage: { type: 'fs', baseDirectory },
    clientId,
    sync: { backend: contiguous(makeWsSync({ url })), initialSyncOptions: { _tag: 'Blocking', timeout: 5000 } },
  }),
  schema,
  storeId,
  syncPayload: { authToken: process.env.TOKEN },
})
const commands = {
  say: (id, conversationId, message) =>
    store.commit(events.messageSent({ id, conversationId, message, role: 'user', createdAt: new Date() })),
  rows: () => store.query(tables.messages).map(({ id, role, responseToMessageId }) => [id, role, responseToMessageId]),
}
const reply = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)
reply({ value: 'ready' })
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, ...given] = JSON.parse(line)
  try {
    reply({ value: commands[command](...given) ?? null })
  } catch (error) {
    reply({ error: String(error.message ?? error) })
  }
}
await store.shutdownPromise()
process.exit(0)

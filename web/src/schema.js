// The events of a chat, and the tables that a page makes of them. An event may come twice after an outage, so every row
// is inserted only once.
import { Events, makeSchema, Schema, State } from '@livestore/livestore'

const { Struct, String: Text, Date: Time, Number: Num, Boolean: Flag, Literal, optional } = Schema
const Metadata = Schema.Record({ key: Text, value: Schema.Unknown })

export const events = {
  conversationCreated: Events.synced({
    name: 'v1.ConversationCreated',
    schema: Struct({ id: Text, title: Text, createdAt: Time }),
  }),
  messageSent: Events.synced({
    name: 'v1.ChatMessageSent',
    schema: Struct({
      id: Text,
      conversationId: Text,
      message: Text,
      role: Literal('user', 'assistant', 'system'),
      createdAt: Time,
    }),
  }),
  responseStarted: Events.synced({
    name: 'v1.LLMResponseStarted',
    schema: Struct({ conversationId: Text, userMessageId: Text, createdAt: Time }),
  }),
  responseReceived: Events.synced({
    name: 'v1.LLMResponseReceived',
    schema: Struct({
      id: Text,
      conversationId: Text,
      message: Text,
      role: Literal('assistant'),
      modelId: Text,
      responseToMessageId: Text,
      createdAt: Time,
      llmMetadata: optional(Metadata),
    }),
  }),
  responseCompleted: Events.synced({
    name: 'v1.LLMResponseCompleted',
    schema: Struct({ conversationId: Text, userMessageId: Text, createdAt: Time, iterations: Num, success: Flag }),
  }),
}

const text = (more = {}) => State.SQLite.text(more)
const time = () => State.SQLite.integer({ schema: Schema.DateFromNumber })

const conversations = State.SQLite.table({
  name: 'conversations',
  columns: { id: text({ primaryKey: true }), title: text(), createdAt: time() },
})
const messages = State.SQLite.table({
  name: 'messages',
  columns: {
    id: text({ primaryKey: true }),
    conversationId: text(),
    message: text(),
    role: text(),
    modelId: text({ nullable: true }),
    responseToMessageId: text({ nullable: true }),
    createdAt: time(),
    llmMetadata: text({ nullable: true, schema: Schema.parseJson(Metadata) }),
  },
})
const working = State.SQLite.table({
  name: 'working',
  columns: { id: text({ primaryKey: true }), conversationId: text() },
})
export const tables = { conversations, messages, working }

const materializers = State.SQLite.materializers(events, {
  'v1.ConversationCreated': (one) => conversations.insert(one).onConflict('id', 'ignore'),
  'v1.ChatMessageSent': (one) => messages.insert(one).onConflict('id', 'ignore'),
  'v1.LLMResponseReceived': (one) => [
    messages.insert(one).onConflict('id', 'ignore'),
    working.delete().where({ id: one.responseToMessageId }),
  ],
  'v1.LLMResponseStarted': ({ userMessageId, conversationId }) =>
    working.insert({ id: userMessageId, conversationId }).onConflict('id', 'ignore'),
  'v1.LLMResponseCompleted': ({ userMessageId }) => working.delete().where({ id: userMessageId }),
})

export const schema = makeSchema({ events, state: State.SQLite.makeState({ tables, materializers }) })

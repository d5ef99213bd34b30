import { queryDb } from '@livestore/livestore'
import { Effect, Stream } from '@livestore/utils/effect'
import { useEffect, useMemo, useRef, useState, useSyncExternalStore } from 'react'
import { events, tables } from './schema.js'

const conversations$ = queryDb(tables.conversations.orderBy('createdAt', 'desc'), { label: 'conversations' })
const NEW = 'new'

// The conversation is the address's fragment, so that each has a link, and Back works.
const subscribe = (changed) => {
  addEventListener('hashchange', changed)
  return () => removeEventListener('hashchange', changed)
}
const current = () => decodeURIComponent(location.hash.slice(1))

export function Chat({ store }) {
  const conversations = store.useQuery(conversations$)
  // What somebody writes in a page without a fragment is not swept away by a conversation that begins elsewhere.
  const [newest] = useState(() => conversations[0]?.id ?? NEW)
  const chosen = useSyncExternalStore(subscribe, current) || newest
  const connected = useConnected(store)
  return (
    <div className="app">
      <nav aria-label="Conversations">
        <h1>llmdo chat</h1>
        <a
          className="new"
          href={`#${NEW}`}
          aria-current={chosen === NEW ? 'page' : undefined}
          onClick={() => document.getElementById('text').focus()}
        >
          New conversation
        </a>
        <ul>
          {conversations.map((one) => (
            <li key={one.id}>
              <a href={`#${encodeURIComponent(one.id)}`} aria-current={one.id === chosen ? 'page' : undefined}>
                {one.title}
              </a>
            </li>
          ))}
        </ul>
      </nav>
      <Conversation
        key={chosen}
        store={store}
        id={chosen}
        title={conversations.find((one) => one.id === chosen)?.title ?? 'New conversation'}
        connected={connected}
      />
    </div>
  )
}

// Whether the sync backend answers; a connection that comes back within seconds is not worth a word.
function useConnected(store) {
  const [connected, setConnected] = useState(true)
  useEffect(() => {
    const gone = new AbortController()
    let timer
    const hear = ({ isConnected }) => {
      clearTimeout(timer)
      if (isConnected) setConnected(true)
      else timer = setTimeout(() => setConnected(false), 4000)
    }
    const heard = store.networkStatus.changes.pipe(Stream.runForEach((status) => Effect.sync(() => hear(status))))
    Effect.runPromise(heard, { signal: gone.signal }).catch(() => {})
    return () => {
      clearTimeout(timer)
      gone.abort()
    }
  }, [store])
  return connected
}

const messagesOf = (id) =>
  queryDb(tables.messages.where({ conversationId: id }).orderBy('createdAt', 'asc'), { label: 'messages', deps: [id] })
const workingOf = (id) => queryDb(tables.working.where({ conversationId: id }), { label: 'working', deps: [id] })

// Each answer follows its message: the clocks of those who wrote them may differ.
function inOrder(messages) {
  const known = new Set(messages.map((one) => one.id))
  const answers = Map.groupBy(
    messages.filter((one) => known.has(one.responseToMessageId)),
    (one) => one.responseToMessageId,
  )
  return messages
    .filter((one) => !known.has(one.responseToMessageId))
    .flatMap((one) => [one, ...(answers.get(one.id) ?? [])])
}

function Conversation({ store, id, title, connected }) {
  const messages = inOrder(store.useQuery(useMemo(() => messagesOf(id), [id])))
  const working = store.useQuery(useMemo(() => workingOf(id), [id]))
  const answered = new Set(messages.map((one) => one.responseToMessageId))
  const inWork = working.some((one) => !answered.has(one.id))
  const end = useRef(null)
  useEffect(() => {
    end.current?.scrollIntoView({ block: 'end' })
  }, [messages.length, inWork])
  const send = (message) => {
    const createdAt = new Date()
    const conversationId = id === NEW ? crypto.randomUUID() : id
    const sent = events.messageSent({ id: crypto.randomUUID(), conversationId, message, role: 'user', createdAt })
    if (id === NEW) {
      store.commit(events.conversationCreated({ id: conversationId, title: titleOf(message), createdAt }), sent)
      location.hash = conversationId
    } else store.commit(sent)
  }
  return (
    <main>
      <h2>{title}</h2>
      <p className="offline" role="status">
        {connected ? '' : 'Not connected. What you write is kept in this browser, and sent as soon as it can be.'}
      </p>
      <section className="messages" role="log" aria-label="Messages" tabIndex={0}>
        {messages.length === 0 && <p className="empty">Write a message: a language model answers it.</p>}
        <ol>
          {messages.map((one) => (
            <Message key={one.id} one={one} open={one.role === 'user' && !answered.has(one.id)} />
          ))}
        </ol>
        <div ref={end} />
      </section>
      <p className="working" role="status">
        {inWork ? 'Working on an answer…' : ''}
      </p>
      <Writer send={send} />
    </main>
  )
}

function titleOf(message) {
  const letters = [...message.trim().split('\n')[0]]
  return letters.length > 60 ? `${letters.slice(0, 59).join('')}…` : letters.join('')
}

function Message({ one, open }) {
  const failed = one.modelId === 'error'
  const kind = failed ? 'error' : one.role
  const who = { user: 'You', assistant: 'Assistant', system: 'System', error: 'No answer' }[kind]
  return (
    <li className={kind} data-id={one.id}>
      <span className="who">{who}</span>
      <p>{one.message}</p>
      <span className="about">
        <time dateTime={one.createdAt.toISOString()}>
          {one.createdAt.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })}
        </time>
        {one.role === 'assistant' && !failed && about(one)}
        {open && ' · not answered yet'}
      </span>
    </li>
  )
}

const dollars = new Intl.NumberFormat('en', { style: 'currency', currency: 'USD', maximumSignificantDigits: 2 })

function about(one) {
  const { usage, latencyMs, costUsd } = one.llmMetadata ?? {}
  const parts = [one.modelId]
  if (usage) parts.push(`${(usage.inputTokens ?? 0).toLocaleString()} + ${(usage.outputTokens ?? 0).toLocaleString()} tokens`)
  if (typeof costUsd === 'number') parts.push(dollars.format(costUsd))
  if (latencyMs) parts.push(`${(latencyMs / 1000).toFixed(1)} s`)
  return parts.map((part) => ` · ${part}`).join('')
}

function Writer({ send }) {
  const [text, setText] = useState('')
  const submit = (event) => {
    event.preventDefault()
    if (!text.trim()) return
    send(text)
    setText('')
  }
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.nativeEvent.isComposing) submit(event)
  }
  return (
    <form onSubmit={submit}>
      <label htmlFor="text">Message</label>
      <textarea
        id="text"
        rows="2"
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={onKeyDown}
        placeholder="Enter sends, Shift+Enter begins a new line"
        autoFocus
      />
      <button type="submit" disabled={!text.trim()}>
        Send
      </button>
    </form>
  )
}

import { makePersistedAdapter } from '@livestore/adapter-web'
import LiveStoreSharedWorker from '@livestore/adapter-web/shared-worker?sharedworker'
import { StoreRegistry } from '@livestore/livestore'
import { StoreRegistryProvider, useStore } from '@livestore/react'
import { Component, Suspense } from 'react'
import { unstable_batchedUpdates as batchUpdates } from 'react-dom'
import { createRoot } from 'react-dom/client'
import { Chat } from './chat.jsx'
import workerUrl from './livestore.worker.js?worker&url'
import { schema } from './schema.js'
import './style.css'

const root = createRoot(document.getElementById('root'))

class Failure extends Component {
  state = { error: null }

  static getDerivedStateFromError(error) {
    return { error }
  }

  render() {
    const { error } = this.state
    return error ? <Notice>This page cannot open its store: {String(error.message ?? error)}</Notice> : this.props.children
  }
}

function Notice({ children }) {
  return (
    <p className="notice" role="status">
      {children}
    </p>
  )
}

function Opened({ config, adapter }) {
  const store = useStore({ storeId: config.store, schema, adapter, batchUpdates, syncPayload: config.payload })
  return <Chat store={store} />
}

async function start() {
  const response = await fetch('config.json', { cache: 'no-store' })
  if (!response.ok) throw new Error(`config.json: HTTP ${response.status}`)
  const config = await response.json()
  const sync = `?sync=${encodeURIComponent(config.syncUrl)}`
  const adapter = makePersistedAdapter({
    storage: { type: 'opfs' },
    worker: (options) => new Worker(workerUrl + sync, { type: 'module', ...options }),
    sharedWorker: LiveStoreSharedWorker,
  })
  root.render(
    <Failure>
      <Suspense fallback={<Notice>Opening the store…</Notice>}>
        <StoreRegistryProvider storeRegistry={new StoreRegistry()}>
          <Opened config={config} adapter={adapter} />
        </StoreRegistryProvider>
      </Suspense>
    </Failure>,
  )
}

root.render(<Notice>Opening the store…</Notice>)
start().catch((error) => root.render(<Notice>This page cannot start: {String(error.message ?? error)}</Notice>))

// The sync backend: LiveStore's own, unchanged. It stores the event logs and passes them on; it calls no model.
import { env } from 'cloudflare:workers'
import { makeDurableObject, makeWorker } from '@livestore/sync-cf/cf-worker'

export class WebSocketServer extends makeDurableObject({}) {}

export default makeWorker({
  syncBackendBinding: 'WEBSOCKET_SERVER',
  // Whoever has the token may read and write every store. A real app checks here who its user is.
  validatePayload: (payload) => {
    if (!env.AUTH_TOKEN) throw new Error('AUTH_TOKEN is not set: nobody may connect')
    if (payload?.authToken !== env.AUTH_TOKEN) throw new Error('Invalid auth token')
  },
  enableCORS: true,
})

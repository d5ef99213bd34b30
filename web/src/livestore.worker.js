import { makeWorker } from '@livestore/adapter-web/worker'
import { makeWsSync } from '@livestore/sync-cf/client'
import { contiguous } from './contiguous.js'
import { schema } from './schema.js'

const url = new URLSearchParams(self.location.search).get('sync')
makeWorker({ schema, sync: { backend: contiguous(makeWsSync({ url })) } })

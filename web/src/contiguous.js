// Keeps LiveStore's client from skipping events.
//
// The client of 0.4.0 applies events in the order in which they arrive, even if some are missing in between. After a
// reconnect, the broadcast of a new event can overtake the stored events that the client missed; a broadcast can also get
// lost. The client then moves its cursor past events that it never had, stops reading when they do arrive (upstream issue
// 283), and never requests them again: their rows are missing for good, even after a reload. Pull requests 1537, 1575 and
// 1576 are about lost broadcasts; nothing released has them.
//
// `contiguous(makeWsSync({ url }))` lets through only what follows the last event. Anything else makes it pull again from
// there. Use it in any app with LiveStore 0.4.0.
import { Effect, Option, Queue, Schedule, Stream } from '@livestore/utils/effect'

// Errors are compared by tag: Effect wraps them when it traces.
const PULL_AGAIN = { _tag: 'PullAgain' }
// How long to wait for the events that a refused push says are missing, before pulling again.
const PATIENCE = '2 seconds'

export const contiguous = (makeBackend) => (args) =>
  Effect.gen(function* () {
    const backend = yield* makeBackend(args)
    const refusals = yield* Queue.sliding(1)
    let last = Option.none() // the cursor
    let gap = ''
    const head = () => Option.match(last, { onNone: () => 0, onSome: ({ eventSequenceNumber }) => eventSequenceNumber })

    const onlyNext = (item) =>
      Effect.suspend(() => {
        const batch = item.batch.filter(({ eventEncoded }) => eventEncoded.seqNum > head())
        if (batch.length > 0) {
          const { parentSeqNum, seqNum } = batch[0].eventEncoded
          const found = `${head()} ${seqNum}`
          // A log can have gaps of its own, left by clients that renumber events under load: the same gap after a new
          // pull is one of these.
          if (parentSeqNum !== head() && found !== gap) {
            gap = found
            return Effect.fail(PULL_AGAIN)
          }
          const { eventEncoded, metadata } = batch.at(-1)
          last = Option.some({ eventSequenceNumber: eventEncoded.seqNum, metadata })
        }
        return Effect.succeed({ ...item, batch })
      })
    // LiveStore parks a refused push until the events before it arrive. If their broadcasts are lost, they never do.
    const stillBehind = Queue.take(refusals).pipe(
      Effect.repeat({ until: (number) => number > head() }),
      Effect.zipRight(Effect.fail(PULL_AGAIN)),
    )
    const pull = (cursor, options) => {
      last = cursor
      return Stream.suspend(() => backend.pull(last, options)).pipe(
        Stream.mapEffect(onlyNext),
        Stream.interruptWhen(stillBehind),
        Stream.retry(Schedule.recurWhile(({ _tag }) => _tag === PULL_AGAIN._tag)),
      )
    }
    const push = (batch) =>
      backend.push(batch).pipe(
        Effect.tapErrorTag('ServerAheadError', ({ minimumExpectedNum }) =>
          Effect.delay(Queue.offer(refusals, minimumExpectedNum), PATIENCE),
        ),
      )
    return { ...backend, pull, push }
  })

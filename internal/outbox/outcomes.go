package outbox

import (
	"context"
	"slices"
	"sync"
	"time"

	"cardorder/internal/store"
)

// outcomes stores what came of a lane's calls, in batches: while one is being written
// the next one gathers by itself. What cannot be stored now, because the database is
// away or an order is locked by somebody, is kept and tried again, and holds up nothing
// else. Nothing waits for it: the lane claims no more while too much is kept, so memory
// is bounded all the same.
//
// A shutdown tries once more; what is then still not stored is found out by asking D1
// when the leases end.
type outcomes struct {
	lane *lane

	mu    sync.Mutex
	fresh [][]store.Completion // batches, the last one still growing
	spare [][]store.Completion // empty ones, to be filled again
	kept  []store.Completion   // failed once
	count int                  // of all that is not stored, in the hands of a storer too
	busy  int                  // storers at work
	since time.Time            // when the first of fresh was begun

	ready chan struct{} // one token while there may be something fresh
	done  chan struct{} // closed when no more will come
}

const (
	maxBatch     = 256  // completions in one transaction
	storers      = 2    // batches at once
	maxUnstored  = 2000 // more than these, and no message is claimed
	retryStoring = 500 * time.Millisecond
	// Large batches cost the database least, so a second one is begun beside another
	// only when it is full, or when the other has been at it for so long, as at a lock.
	tooLong = 100 * time.Millisecond
)

func newOutcomes(l *lane) *outcomes {
	return &outcomes{lane: l, ready: make(chan struct{}, 1), done: make(chan struct{})}
}

// add hands over what came of a call. It never blocks.
func (o *outcomes) add(c store.Completion) {
	c.Message.Body = nil // not needed any more, and large
	o.mu.Lock()
	o.count++
	last := len(o.fresh) - 1
	if last < 0 {
		o.since = time.Now()
	}
	if last < 0 || len(o.fresh[last]) == maxBatch {
		var batch []store.Completion
		if n := len(o.spare); n > 0 {
			batch, o.spare = o.spare[n-1], o.spare[:n-1]
		}
		o.fresh = append(o.fresh, batch)
		last++
	}
	o.fresh[last] = append(o.fresh[last], c)
	o.mu.Unlock()
	o.signal()
}

func (o *outcomes) signal() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// unstored is how many wait to be stored.
func (o *outcomes) unstored() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

func (o *outcomes) full() bool { return o.unstored() >= maxUnstored }

// close lets run end when all is stored.
func (o *outcomes) close() { close(o.done) }

// run stores until close is called.
func (o *outcomes) run(ctx context.Context) {
	var work sync.WaitGroup
	for range storers {
		work.Go(func() { o.store(ctx) })
	}
	work.Go(func() { o.retry(ctx) })
	work.Wait()
	o.retryKept(ctx)
	if len(o.kept) > 0 {
		o.lane.log.Error("stopping with calls that are not stored; D1 is asked when their leases end", "count", len(o.kept))
	}
}

// store writes what is fresh, batch by batch.
func (o *outcomes) store(ctx context.Context) {
	for ended := false; ; {
		batch := o.take()
		switch {
		case batch != nil:
			again := o.storeBatch(ctx, batch)
			o.mu.Lock()
			o.busy--
			o.mu.Unlock()
			o.settle(batch, again)
		case ended:
			return // whatever is left another storer takes, who is at work
		default:
			select {
			case <-o.ready:
			case <-o.done:
				ended = true
			}
		}
	}
}

// take takes the oldest fresh batch into the hands of the caller; nil when there is none.
func (o *outcomes) take() []store.Completion {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.fresh) == 0 || o.busy > 0 && len(o.fresh[0]) < maxBatch && time.Since(o.since) < tooLong {
		return nil
	}
	batch := o.fresh[0]
	o.busy++
	if o.fresh = slices.Delete(o.fresh, 0, 1); len(o.fresh) > 0 {
		o.since = time.Now()
		o.signal() // for another storer
	}
	return batch
}

// settle ends the storing of a batch, and keeps what is to be tried again.
func (o *outcomes) settle(batch, again []store.Completion) {
	o.mu.Lock()
	wasFull := o.count >= maxUnstored
	o.kept = append(o.kept, again...)
	o.count -= len(batch) - len(again)
	isFull := o.count >= maxUnstored
	clear(batch)
	if len(o.spare) <= storers {
		o.spare = append(o.spare, batch[:0])
	}
	o.mu.Unlock()
	if wasFull && !isFull {
		o.lane.look()
	}
}

// retry tries again what failed, beside the fresh: a lock may have to be waited for.
func (o *outcomes) retry(ctx context.Context) {
	again := time.NewTicker(retryStoring)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			o.retryKept(ctx)
			o.signal() // if one storer has been at it for too long
		case <-o.done:
			return
		}
	}
}

func (o *outcomes) retryKept(ctx context.Context) {
	o.mu.Lock()
	kept := o.kept
	o.kept = nil
	o.mu.Unlock()
	for batch := range slices.Chunk(kept, maxBatch) {
		o.settle(batch, o.storeBatch(ctx, batch))
	}
}

// storeBatch stores completions and returns those that are to be tried again. When
// a batch fails for one of them, the others are stored one by one.
func (o *outcomes) storeBatch(ctx context.Context, batch []store.Completion) (again []store.Completion) {
	err := o.complete(ctx, batch)
	log := o.lane.log
	switch {
	case err == nil:
		return nil
	case len(batch) == 1 && !store.Unavailable(err):
		log.Error("what came of a call cannot be stored; D1 is asked when the lease ends", "orderId", batch[0].Message.OrderID, "error", err)
		return nil
	case len(batch) == 1 || store.Away(err):
		log.Error("storing what came of calls failed; it is tried again", "count", len(batch), "error", err)
		return batch
	}
	for _, c := range batch {
		again = append(again, o.storeBatch(ctx, []store.Completion{c})...)
	}
	return again
}

func (o *outcomes) complete(ctx context.Context, batch []store.Completion) error {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.lane.cfg.CallTimeout)
	defer cancel()
	if err := o.lane.store.Complete(short, batch); err != nil {
		return err
	}
	if slices.ContainsFunc(batch, func(c store.Completion) bool { return c.Next.RunIn == 0 && c.Next.Maybe == store.MaybeClear }) {
		o.lane.wake() // one may be sent again at once
	}
	return nil
}

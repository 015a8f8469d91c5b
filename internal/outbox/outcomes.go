package outbox

import (
	"context"
	"slices"
	"sync"
	"time"

	"cardorder/internal/order"
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

	mu      sync.Mutex
	fresh   []store.Completion
	kept    []store.Completion // failed once
	storing int                // in the hands of a storer

	ready chan struct{} // one token while there may be something fresh
	done  chan struct{} // closed when no more will come
}

const (
	maxBatch     = 100  // completions in one transaction
	storers      = 2    // batches at once
	maxUnstored  = 1000 // more than these, and no message is claimed
	retryStoring = 500 * time.Millisecond
)

func newOutcomes(l *lane) *outcomes {
	return &outcomes{lane: l, ready: make(chan struct{}, 1), done: make(chan struct{})}
}

// add hands over what came of a call. It never blocks.
func (o *outcomes) add(c store.Completion) {
	c.Message.Production = order.Production{} // not needed any more, and large
	o.mu.Lock()
	o.fresh = append(o.fresh, c)
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
	return len(o.fresh) + len(o.kept) + o.storing
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
	o.storeAll(ctx, o.take(&o.kept, maxUnstored*2))
	if len(o.kept) > 0 {
		o.lane.log.Error("stopping with calls that are not stored; D1 is asked when their leases end", "count", len(o.kept))
	}
}

// store writes what is fresh, batch by batch.
func (o *outcomes) store(ctx context.Context) {
	for {
		batch := o.take(&o.fresh, maxBatch)
		if len(batch) > 0 {
			o.storeAll(ctx, batch)
			continue
		}
		select {
		case <-o.ready:
		case <-o.done:
			if batch := o.take(&o.fresh, maxBatch); len(batch) > 0 {
				o.storeAll(ctx, batch)
				continue
			}
			return
		}
	}
}

// retry tries again what failed, beside the fresh: a lock may have to be waited for.
func (o *outcomes) retry(ctx context.Context) {
	again := time.NewTicker(retryStoring)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			o.storeAll(ctx, o.take(&o.kept, maxUnstored))
		case <-o.done:
			return
		}
	}
}

// take takes up to n from a list, into the hands of the caller.
func (o *outcomes) take(list *[]store.Completion, n int) []store.Completion {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := *list
	if len(all) <= n {
		*list = nil
		o.storing += len(all)
		return all
	}
	*list = slices.Clone(all[n:])
	o.storing += n
	o.signal() // for another storer
	return all[:n:n]
}

// storeAll stores what was taken, and keeps what is to be tried again.
func (o *outcomes) storeAll(ctx context.Context, taken []store.Completion) {
	var again []store.Completion
	for batch := range slices.Chunk(taken, maxBatch) {
		again = append(again, o.storeBatch(ctx, batch)...)
	}
	if len(taken) == 0 {
		return
	}
	wasFull := o.full()
	o.mu.Lock()
	o.storing -= len(taken)
	o.kept = append(o.kept, again...)
	o.mu.Unlock()
	if wasFull && !o.full() {
		o.lane.look()
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

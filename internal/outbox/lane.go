// Package outbox brings messages from the store to D1. Each issuer's D1 is a
// lane with its own limits, so that a slow or broken one slows nobody else.
//
// The promise: an order is made exactly once, provided that D1 shows an
// accepted order within Policy.ResendAfter or is idempotent by issuerRequestId.
// To keep it, whatever may have reached D1 without an answer is asked about
// before it is sent again; see decide.go for every rule.
package outbox

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Config is one lane.
type Config struct {
	IssuerID    string
	Concurrency int           // calls to D1 at once; 0 means 16
	CallTimeout time.Duration // deadline of one call; 0 means 30 s
	// Poll is how often the lane looks for due messages when nothing wakes it;
	// 0 means 1 s.
	Poll   time.Duration
	Policy Policy
	Log    *slog.Logger
}

// Lane sends the messages of one issuer's D1.
type Lane struct {
	cfg         Config
	name        string
	lease       time.Duration
	store       *store.Store
	d1          *d1client.Client
	metrics     *Metrics
	wake        chan struct{}
	completions chan store.Completion
	claims      int // made so far; for the goroutine of Run
}

// NewLane makes a lane. Run starts it.
func NewLane(cfg Config, st *store.Store, d1 *d1client.Client, m *Metrics) *Lane {
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 16
	}
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = 30 * time.Second
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	cfg.Policy = cfg.Policy.withDefaults()
	return &Lane{
		cfg:  cfg,
		name: store.LaneOf(cfg.IssuerID),
		// Twice the deadline of a call: a worker that cannot finish a call before
		// its lease ends does not begin it, and half a lease is time to begin.
		lease:       2 * cfg.CallTimeout,
		store:       st,
		d1:          d1,
		metrics:     m,
		wake:        make(chan struct{}, 1),
		completions: make(chan store.Completion, cfg.Concurrency),
	}
}

// Wake makes the lane look for due messages now. It never blocks.
func (l *Lane) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx is cancelled. Then it takes no more messages, lets the
// calls under way finish (at most Config.CallTimeout), stores what came of them,
// and returns.
func (l *Lane) Run(ctx context.Context) {
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		l.storeCompletions(ctx)
	}()
	var calls sync.WaitGroup
	slots := make(chan struct{}, l.cfg.Concurrency)
	for ctx.Err() == nil {
		n := reserve(ctx, slots)
		claimedAt := time.Now()
		messages := l.claim(ctx, n)
		for range n - len(messages) {
			<-slots
		}
		for _, m := range messages {
			calls.Go(func() {
				defer func() { <-slots }()
				l.handle(ctx, m, claimedAt)
			})
		}
		if len(messages) < n {
			l.wait(ctx)
		}
	}
	calls.Wait()
	close(l.completions)
	<-stored
}

// reserve waits for one free slot and takes all that are free. It returns how
// many; none when ctx ends.
func reserve(ctx context.Context, slots chan struct{}) int {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	for n := 1; ; n++ {
		select {
		case slots <- struct{}{}:
		default:
			return n
		}
	}
}

// claim takes due messages. It is not cut short by a shutdown: a claim that was
// committed but never seen would have to be treated as a lost answer.
func (l *Lane) claim(ctx context.Context, n int) []store.Message {
	if n == 0 {
		return nil
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	var messages []store.Message
	for _, class := range l.classes() {
		more, err := l.store.Claim(short, store.ClaimRequest{Lane: l.name, Class: class, Limit: n - len(messages), Lease: l.lease})
		if err != nil {
			l.cfg.Log.Error("claiming messages failed", "lane", l.name, "error", err)
			break
		}
		if messages = append(messages, more...); len(messages) == n {
			break
		}
	}
	if ctx.Err() != nil {
		l.release(ctx, messages)
		return nil
	}
	return messages
}

// batchEvery is how often batches come first: one claim in ten, so that neither class
// waits for the other for ever.
const batchEvery = 10

// classes returns the classes in the order in which they are claimed this time.
func (l *Lane) classes() []store.Class {
	if l.claims++; l.claims%batchEvery == 0 {
		return []store.Class{store.ClassBatch, store.ClassSingle}
	}
	return []store.Class{store.ClassSingle, store.ClassBatch}
}

func (l *Lane) release(ctx context.Context, messages []store.Message) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	if err := l.store.Release(short, messages); err != nil {
		// Their leases run out and they are asked about: slower, but as safe.
		l.cfg.Log.Error("giving messages back failed", "lane", l.name, "count", len(messages), "error", err)
	}
}

// wait returns when there may be something to do. Polling is jittered so that
// replicas do not come all at once.
func (l *Lane) wait(ctx context.Context) {
	poll := time.NewTimer(l.cfg.Poll/2 + rand.N(l.cfg.Poll))
	defer poll.Stop()
	select {
	case <-l.wake:
	case <-poll.C:
	case <-ctx.Done():
	}
}

// handle makes the one call that a message needs and passes on what came of it.
// A panic loses the claim, not the message: it is asked about when the lease ends.
func (l *Lane) handle(ctx context.Context, m store.Message, claimedAt time.Time) {
	log := l.cfg.Log.With("lane", l.name, "orderId", m.OrderID, "issuerRequestId", m.IssuerRequestID)
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic while handling a message", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	// A shutdown lets a call finish. The deadline lies before the end of the
	// lease by this process's monotonic clock, which was read before the claim.
	deadline := time.Now().Add(l.cfg.CallTimeout)
	if deadline.After(claimedAt.Add(l.lease)) {
		l.release(ctx, []store.Message{m})
		return
	}
	call, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	c, sent := l.call(call, m, claimedAt, deadline)
	if !sent {
		l.release(ctx, []store.Message{m})
		return
	}
	l.metrics.attempt(l.cfg.IssuerID, c.Attempt)
	log.Info("attempt",
		"attemptId", c.Attempt.ID, "kind", c.Attempt.Kind, "outcome", c.Attempt.Outcome, "reason", c.Attempt.Reason,
		"httpStatus", c.Attempt.HTTPStatus, "errorCode", c.Attempt.ErrorCode, "operationId", c.Attempt.OperationID,
		"correlationId", c.Attempt.CorrelationID, "durationMs", c.Attempt.Duration.Milliseconds(),
		"try", m.Tries+1, "nextInMs", c.Next.RunIn.Milliseconds())
	l.completions <- c
}

var (
	errLease   = errors.New("the lease is about to end")
	errRetired = errors.New("the message is no longer this worker's")
)

// freshClaim is for how long a claim of a message that was never sent before
// needs no second look.
const freshClaim = time.Second

// mayStillSend is asked when the token and the connection are there, immediately
// before the first byte. Getting them takes time, and meanwhile D1 may have told
// that it has the order from an earlier sending: that retires the message.
func (l *Lane) mayStillSend(ctx context.Context, m store.Message, claimedAt, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return errLease
	}
	if !m.SentBefore && time.Since(claimedAt) < freshClaim {
		return nil
	}
	held, err := l.store.Holds(ctx, m)
	if err == nil && !held {
		err = errRetired
	}
	return err
}

// call asks D1 for what the message needs. sent is false when the message is to
// be given back as it was.
func (l *Lane) call(ctx context.Context, m store.Message, claimedAt, deadline time.Time) (c store.Completion, sent bool) {
	id, err := uuid.NewV7()
	if err != nil {
		return store.Completion{}, false
	}
	attempt := store.Attempt{ID: id, StartedAt: time.Now().UTC()}
	switch {
	case m.MaybeSent:
		return l.ask(ctx, m, attempt), true
	case m.Err != nil:
		l.cfg.Log.Error("an order's sealed content cannot be opened", "lane", l.name, "orderId", m.OrderID, "error", m.Err)
		return unreadable(m, attempt), true
	}
	body, err := m.Production.Body()
	if err != nil {
		l.cfg.Log.Error("an order cannot be written", "lane", l.name, "orderId", m.OrderID, "error", err)
		return unreadable(m, attempt), true
	}
	answer := l.d1.Produce(ctx, d1client.ProduceCall{
		CardID: m.CardID, CorrelationID: id.String(), Body: body,
		BeforeSend: func() error { return l.mayStillSend(ctx, m, claimedAt, deadline) },
	})
	if answer.Reason == d1client.ReasonNotSent {
		return store.Completion{}, false
	}
	return l.cfg.Policy.submitted(m, attempt, answer), true
}

// ask finds out whether D1 has an order whose outcome is unknown.
func (l *Lane) ask(ctx context.Context, m store.Message, attempt store.Attempt) store.Completion {
	answer := l.d1.ProductionStatus(ctx, m.CardID, attempt.ID.String())
	around, err := l.surroundings(ctx, m, answer)
	if err != nil {
		l.cfg.Log.Error("looking up what belongs to a card failed", "lane", l.name, "orderId", m.OrderID, "error", err)
		answer.Finding = d1client.LookupFailed
	}
	return l.cfg.Policy.asked(m, attempt, answer, around)
}

func (l *Lane) surroundings(ctx context.Context, m store.Message, answer d1client.StatusAnswer) (around surroundings, err error) {
	around.proven = answer.Finding == d1client.CardNotFound && l.findsKnownCard(ctx)
	var ids []string
	for _, op := range answer.Operations {
		ids = append(ids, op.OperationID)
	}
	if around.owners, err = l.store.OperationOwners(ctx, l.cfg.IssuerID, ids); err != nil {
		return around, err
	}
	around.sibling, around.parked, err = l.store.Doubts(ctx, m)
	return around, err
}

// findsKnownCard proves that a 404 means "no such card" and not "no such path":
// the same question about a card that D1 certainly has gets its answer.
func (l *Lane) findsKnownCard(ctx context.Context) bool {
	card, err := l.store.KnownCard(ctx, l.cfg.IssuerID, l.cfg.Policy.ResendAfter)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			l.cfg.Log.Error("looking for a known card failed", "lane", l.name, "error", err)
		}
		return false
	}
	return l.d1.ProductionStatus(ctx, card, "").Finding == d1client.Found
}

// maxBatch is how many completions are stored in one transaction.
const maxBatch = 100

// storeCompletions stores what came of calls until the channel is closed. While
// one batch is being written the next one gathers by itself. What cannot be stored
// now, because the database is away or an order is locked by somebody, is kept and
// tried again, and holds up nothing else. A shutdown tries once more; what is then
// still not stored is found out by asking D1 when the leases end.
func (l *Lane) storeCompletions(ctx context.Context) {
	var kept []store.Completion
	retry := time.NewTicker(retryStoring)
	defer retry.Stop()
	retried, retrying := make(chan []store.Completion, 1), false // beside: a lock is waited for
	for {
		select {
		case first, open := <-l.completions:
			if open {
				kept = append(kept, l.storeBatch(ctx, l.gather(first))...)
				continue
			}
			if retrying {
				kept = append(kept, <-retried...)
			}
			if lost := l.storeBatch(ctx, kept); len(lost) > 0 {
				l.cfg.Log.Error("stopping with calls that are not stored; D1 is asked when their leases end", "lane", l.name, "count", len(lost))
			}
			return
		case again := <-retried:
			kept, retrying = append(kept, again...), false
		case <-retry.C:
			if len(kept) > 0 && !retrying {
				batch := kept
				kept, retrying = nil, true
				go func() { retried <- l.storeBatch(ctx, batch) }()
			}
		}
	}
}

// retryStoring is how often it is tried to store what could not be stored.
const retryStoring = 500 * time.Millisecond

func (l *Lane) gather(first store.Completion) []store.Completion {
	batch := []store.Completion{first}
	for len(batch) < maxBatch {
		select {
		case c, ok := <-l.completions:
			if !ok {
				return batch
			}
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// storeBatch stores completions and returns those that are to be tried again. When
// a batch fails for one of them, the others are stored one by one.
func (l *Lane) storeBatch(ctx context.Context, batch []store.Completion) (again []store.Completion) {
	if len(batch) == 0 {
		return nil
	}
	err := l.complete(ctx, batch)
	switch {
	case err == nil:
		return nil
	case len(batch) == 1 && !store.Unavailable(err):
		l.cfg.Log.Error("what came of a call cannot be stored; D1 is asked when the lease ends",
			"lane", l.name, "orderId", batch[0].Message.OrderID, "error", err)
		return nil
	case len(batch) == 1 || store.Away(err):
		l.cfg.Log.Error("storing what came of calls failed", "lane", l.name, "count", len(batch), "error", err)
		return batch
	}
	for _, c := range batch {
		again = append(again, l.storeBatch(ctx, []store.Completion{c})...)
	}
	return again
}

func (l *Lane) complete(ctx context.Context, batch []store.Completion) error {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	if err := l.store.Complete(short, batch); err != nil {
		return err
	}
	if slices.ContainsFunc(batch, func(c store.Completion) bool { return c.Next.RunIn == 0 }) {
		l.Wake() // something may be due at once
	}
	return nil
}

// unreadable keeps an order whose content cannot be read and calls for help.
func unreadable(m store.Message, attempt store.Attempt) store.Completion {
	attempt.Kind, attempt.Outcome, attempt.Reason = store.AttemptSubmit, "not-taken", "unreadable-content"
	attempt.CorrelationID = attempt.ID.String()
	return store.Completion{
		Message: m, Attempt: attempt,
		Evidence: []order.Evidence{order.Notice{Attention: order.AttentionUnreadable}},
		Next:     store.Next{RunIn: 5 * time.Minute, Tries: m.Tries + 1, Unsent: true},
	}
}

// Package outbox brings messages from the store to D1. Each issuer's D1 is a
// lane with its own limits, so that a slow or broken one slows nobody else; the
// lanes of a process are its Fleet, by which replicas share the limits.
//
// The promise: an order is made exactly once, provided that D1 shows an
// accepted order within Policy.ResendAfter or is idempotent by issuerRequestId.
// To keep it, whatever may have reached D1 without an answer is asked about
// before it is sent again; see decide.go for every rule.
package outbox

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

// Config is one lane.
type Config struct {
	IssuerID string
	// Concurrency is how many calls to D1 all replicas together have open at once;
	// 0 means 16.
	Concurrency int
	// RatePerSecond is how many calls they begin in a second; 0 means no limit.
	RatePerSecond int
	CallTimeout   time.Duration // deadline of one call; 0 means 30 s
	// Poll is how often the lane looks for due messages when nothing wakes it;
	// 0 means 1 s.
	Poll time.Duration
	// BreakerThreshold is how many calls in a row must fail for this process to stop
	// calling for a while; 0 means 5.
	BreakerThreshold int
	Policy           Policy
	Log              *slog.Logger
}

func (c Config) withDefaults() Config {
	setDefault(&c.Concurrency, 16)
	setDefault(&c.CallTimeout, 30*time.Second)
	setDefault(&c.Poll, time.Second)
	setDefault(&c.BreakerThreshold, 5)
	c.Policy = c.Policy.withDefaults()
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// lane sends the messages of one issuer's D1.
//
// One goroutine (run) claims. What it claimed waits in the queue for a free slot; as
// many workers as there are messages and slots take from it, and end when there is
// none. What came of a call goes to outcomes, which stores it. Everything below mu
// belongs to all of them.
type lane struct {
	cfg      Config
	name     string
	lease    time.Duration
	store    *store.Store
	d1       *d1client.Client
	metrics  *laneMetrics
	log      *slog.Logger
	outcomes *outcomes
	kick     chan struct{} // something changed: run looks what there is to do

	mu      sync.Mutex
	workers sync.WaitGroup
	queue   queue
	slots   slots
	sending breaker
	asking  breaker
	// hungry: there may be due messages of the class in the store.
	hungry   [3]bool
	ahead    ahead
	returned []*job // to be given back
	draining bool

	// What the fleet last said.
	heard   bool
	resumes int
	paused  bool
	stopped bool
	probeAt time.Time // when the next probe of a stopped lane is due; zero when that must be heard first
	limiter *rate.Limiter

	// Only run uses these.
	claims   int       // made so far
	pollAt   time.Time // when to look for due messages unasked
	quietFor time.Time // no claims until then: the last one failed
	failing  bool      // and that was told
}

func newLane(cfg Config, st *store.Store, d1 *d1client.Client, m *Metrics) *lane {
	cfg = cfg.withDefaults()
	name := store.LaneOf(cfg.IssuerID)
	l := &lane{
		cfg:  cfg,
		name: name,
		// Twice the deadline of a call: a worker that cannot finish a call before
		// its lease ends does not begin it, and half a lease is time to begin.
		lease:   2 * cfg.CallTimeout,
		store:   st,
		d1:      d1,
		metrics: m.lane(cfg.IssuerID),
		log:     cfg.Log.With("lane", name),
		kick:    make(chan struct{}, 1),
		sending: breaker{threshold: cfg.BreakerThreshold},
		asking:  breaker{threshold: cfg.BreakerThreshold},
		ahead:   ahead{depth: cfg.Concurrency},
	}
	l.outcomes = newOutcomes(l)
	return l
}

// wake makes the lane look for due messages now. It never blocks.
func (l *lane) wake() {
	l.mu.Lock()
	l.hungry = [3]bool{true, true, true}
	l.mu.Unlock()
	l.look()
}

func (l *lane) look() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run works until ctx is cancelled. Then it takes no more messages, gives back what it
// has not sent, lets the calls under way finish (at most Config.CallTimeout), stores
// what came of them, and returns.
func (l *lane) run(ctx context.Context) {
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		l.outcomes.run(ctx)
	}()
	for ctx.Err() == nil {
		l.giveBack(ctx)
		c, wait := l.plan(time.Now())
		if c.limit == 0 {
			l.rest(ctx, wait)
			continue
		}
		l.claim(ctx, c)
	}
	l.mu.Lock()
	l.draining = true
	l.returned = append(l.returned, l.queue.drop(all)...)
	l.mu.Unlock()
	l.giveBack(ctx)
	l.workers.Wait()
	l.giveBack(ctx)
	l.outcomes.close()
	<-stored
}

func (l *lane) rest(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-l.kick:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// claimPlan is one claim to be made.
type claimPlan struct {
	class store.Class
	probe bool // of a stopped lane; class does not matter
	limit int  // 0: nothing is to be claimed now
}

// plan says what to claim next, or for how long there is nothing to do unless
// something happens.
func (l *lane) plan(now time.Time) (c claimPlan, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !now.Before(l.pollAt) {
		l.returnStale(now)
		l.hungry = [3]bool{true, true, true}
		// Jittered, so that replicas do not come all at once.
		l.pollAt = now.Add(l.cfg.Poll/2 + jitter(l.cfg.Poll))
	}
	next := l.pollAt
	soonest := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	switch {
	case l.paused || l.slots.share == 0 || l.outcomes.full():
	case now.Before(l.quietFor):
		soonest(l.quietFor)
	case l.stopped:
		allowed, at := l.sending.allows(now)
		switch {
		case l.probeAt.IsZero(): // heard with the next beat
		case now.Before(l.probeAt):
			soonest(l.probeAt)
		case allowed == allowNone:
			soonest(at)
		default:
			l.probeAt = time.Time{}
			return claimPlan{probe: true, limit: 1}, 0
		}
	default:
		room, at := l.roomByRate(now)
		soonest(at)
		for _, class := range l.classes() {
			allowed, at := l.breakerOf(class == store.ClassQuestion).allows(now)
			waiting := l.queue.waiting(class)
			limit := min(l.ahead.depth-waiting, room)
			switch {
			case allowed == allowNone:
				soonest(at)
				continue
			case allowed == allowOne:
				limit = min(1, room)
			case waiting > l.ahead.depth/2:
				continue
			}
			if l.hungry[class] && limit > 0 {
				l.claims++
				l.hungry[class] = false // unless it is said again meanwhile, or there is more
				return claimPlan{class: class, limit: limit}, 0
			}
		}
	}
	return claimPlan{}, max(0, next.Sub(now))
}

// roomByRate is how many messages may be claimed by the rate limit, and when there
// will be one. The limit is waited for before the claim, so that it eats no leases;
// and nothing is claimed ahead, or it would all go out at once after a standstill.
func (l *lane) roomByRate(now time.Time) (room int, at time.Time) {
	if l.limiter == nil {
		return 1 << 20, time.Time{}
	}
	tokens := l.limiter.TokensAt(now)
	if tokens < 1 {
		return 0, now.Add(time.Duration((1 - tokens) / float64(l.limiter.Limit()) * float64(time.Second)))
	}
	return min(int(tokens), l.slots.share-l.slots.busy-l.queue.len()), time.Time{}
}

// classes are the classes in the order in which they are claimed this time: where the
// rate limit leaves little, each comes first often enough.
func (l *lane) classes() [3]store.Class {
	switch {
	case (l.claims+1)%questionEvery == 0:
		return [3]store.Class{store.ClassQuestion, store.ClassSingle, store.ClassBatch}
	case (l.claims+1)%batchEvery == 1:
		return [3]store.Class{store.ClassBatch, store.ClassSingle, store.ClassQuestion}
	}
	return [3]store.Class{store.ClassSingle, store.ClassBatch, store.ClassQuestion}
}

func (l *lane) breakerOf(asks bool) *breaker {
	if asks {
		return &l.asking
	}
	return &l.sending
}

// quiet is how long to do without claims after one that failed.
const quiet = 500 * time.Millisecond

// claim takes due messages. It is not cut short by a shutdown: a claim that was
// committed but never seen would have to be treated as a lost answer.
func (l *lane) claim(ctx context.Context, c claimPlan) {
	claimedAt := time.Now()
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	var messages []store.Message
	var err error
	if c.probe {
		messages, err = l.store.ClaimProbe(short, l.name, l.lease)
		l.metrics.probes.Add(float64(len(messages)))
	} else {
		messages, err = l.store.Claim(short, store.ClaimRequest{Lane: l.name, Class: c.class, Limit: c.limit, Lease: l.lease})
	}
	full := len(messages) == c.limit
	if err == nil {
		messages, err = l.admit(short, messages, claimedAt)
	}
	now := time.Now()
	if err != nil {
		if !l.failing {
			l.log.Error("claiming messages fails; it is tried again", "error", err)
		}
		l.failing, l.quietFor = true, now.Add(quiet+jitter(quiet))
		l.wake()
		return
	}
	if l.failing {
		l.log.Info("claiming messages works again")
	}
	l.failing = false

	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.probe {
		l.hungry[c.class] = l.hungry[c.class] || full
		l.ahead.claimed(now, full, l.slots.share)
	}
	if l.limiter != nil && len(messages) > 0 {
		l.limiter.ReserveN(now, len(messages))
	}
	for _, m := range messages {
		j := &job{Message: m, claimedAt: claimedAt}
		if m.Halted || l.paused { // that was heard while the claim was under way
			l.returned = append(l.returned, j)
			continue
		}
		if m.MaybeSent && m.Class != store.ClassQuestion {
			l.metrics.rescued.Inc()
		}
		// A lapsed lease of an order comes in the order's class, and is asked about.
		b := l.breakerOf(j.asks())
		switch allowed, _ := b.allows(now); allowed {
		case allowNone:
			l.returned = append(l.returned, j)
			continue
		case allowOne:
			b.tryOne()
			j.trying = true
		case allowAll:
		}
		l.queue.add(j)
	}
	l.employ(ctx)
}

// admit applies the limits of the issuer's programs to what was just claimed. When that
// fails nothing of it may be sent, and all of it is given back.
func (l *lane) admit(ctx context.Context, messages []store.Message, claimedAt time.Time) ([]store.Message, error) {
	admitted, err := l.store.Admit(ctx, l.cfg.IssuerID, messages)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, m := range messages {
			l.returned = append(l.returned, &job{Message: m, claimedAt: claimedAt})
		}
	}
	return admitted, err
}

// employ starts workers for what waits while slots are free.
func (l *lane) employ(ctx context.Context) {
	for {
		j := l.pick(time.Now())
		if j == nil {
			return
		}
		l.workers.Go(func() { l.work(ctx, j) })
	}
}

// work handles a message, and then others as long as there are any for its slot.
func (l *lane) work(ctx context.Context, j *job) {
	for j != nil {
		l.handle(ctx, j)
		l.mu.Lock()
		l.slots.busy--
		if j.asks() {
			l.slots.asking--
		}
		j = l.pick(time.Now())
		l.mu.Unlock()
	}
}

// pick takes a message for a free slot, and has run claim more in time; nil when there
// is none.
func (l *lane) pick(now time.Time) *job {
	if l.draining {
		return nil
	}
	for {
		j := l.queue.pick(l.slots)
		if j == nil {
			l.lookIfHungry(store.ClassSingle, store.ClassBatch, store.ClassQuestion)
			return nil
		}
		l.lookIfHungry(j.Class)
		if !j.claimedAt.Add(l.lease - l.cfg.CallTimeout).After(now) {
			l.giveUp(j)
			continue
		}
		l.slots.busy++
		if j.asks() {
			l.slots.asking++
		}
		return j
	}
}

func (l *lane) lookIfHungry(classes ...store.Class) {
	for _, c := range classes {
		if l.hungry[c] && l.queue.waiting(c) <= l.ahead.depth/2 {
			l.look()
			return
		}
	}
}

// giveUp has a message given back of which no byte was sent.
func (l *lane) giveUp(jobs ...*job) {
	for _, j := range jobs {
		if j.trying {
			l.breakerOf(j.asks()).undoTry()
		}
	}
	l.returned = append(l.returned, jobs...)
	if len(jobs) > 0 {
		l.look()
	}
}

// returnStale gives back what has waited here for so long that another replica may have
// a free slot for it sooner.
func (l *lane) returnStale(now time.Time) {
	l.giveUp(l.queue.drop(func(j *job) bool { return now.Sub(j.claimedAt) > l.lease/4 })...)
}

// giveBack gives back what is not to be sent from here. What cannot be given back now
// is tried again until its lease is over.
func (l *lane) giveBack(ctx context.Context) {
	l.mu.Lock()
	jobs := l.returned
	l.returned = nil
	l.mu.Unlock()
	var messages []store.Message
	for _, j := range jobs {
		if time.Since(j.claimedAt) < l.lease {
			messages = append(messages, j.Message)
		}
	}
	if len(messages) == 0 {
		return
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	if err := l.store.Release(short, messages); err != nil {
		// At worst their leases run out and they are asked about: slower, but as safe.
		l.log.Error("giving messages back failed", "count", len(messages), "error", err)
		l.quietFor = time.Now().Add(quiet + jitter(quiet))
		l.mu.Lock()
		l.returned = append(l.returned, jobs...)
		l.mu.Unlock()
	}
}

// handle makes the one call that a message needs and passes on what came of it.
// A panic loses the claim, not the message: it is asked about when the lease ends.
func (l *lane) handle(ctx context.Context, j *job) {
	told := false
	defer func() {
		p := recover()
		if p != nil {
			l.log.Error("panic while handling a message", "orderId", j.OrderID, "panic", p, "stack", string(debug.Stack()))
		}
		if !told {
			l.mu.Lock()
			defer l.mu.Unlock()
			if p == nil {
				l.giveUp(j)
			} else if j.trying {
				l.breakerOf(j.asks()).undoTry()
			}
		}
	}()
	// A shutdown lets a call finish. The deadline lies before the end of the
	// lease by this process's monotonic clock, which was read before the claim.
	deadline := time.Now().Add(l.cfg.CallTimeout)
	if deadline.After(j.claimedAt.Add(l.lease)) {
		return
	}
	call, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	c, reply, sent := l.call(call, j, deadline)
	if !sent {
		return
	}
	told = true
	l.outcomes.add(c) // first: whatever goes wrong after this, the answer is not lost
	l.learn(j, reply)
	l.tell(j, c)
}

// learn lets the breaker of a direction know of a call.
func (l *lane) learn(j *job, reply d1client.Reply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, asks := time.Now(), j.asks()
	b := l.breakerOf(asks)
	before := b.state
	b.record(now, reply.Reason, reply.RetryAfter, j.trying)
	if b.state != before {
		l.log.Warn("breaker", "direction", direction(asks), "from", before.String(), "state", b.state.String(),
			"reason", reply.Reason, "error", reply.Err)
		l.look()
	}
	if !b.sends(now) {
		l.giveUp(l.queue.drop(func(j *job) bool { return j.asks() == asks && !j.trying })...)
	}
	if !reply.ServerDate.IsZero() {
		skew := reply.ServerDate.Add(500 * time.Millisecond).Sub(now) // the date is cut to the second
		l.metrics.d1Skew.Set(skew.Seconds())
	}
}

// tell counts an attempt and writes its one line.
func (l *lane) tell(j *job, c store.Completion) {
	l.metrics.attempt(c)
	if c.Attempt.Kind == store.AttemptSubmit && c.Attempt.Outcome == d1client.Taken.String() {
		l.metrics.accepted(j.Class, j.ClaimedAt.Sub(j.AcceptedAt)+time.Since(j.claimedAt))
	}
	// D1's plain yes is the rule, thousands a second in a campaign: "order changed" tells
	// of it too. Strings only, since anything else costs reflection.
	level := slog.LevelInfo
	if c.Attempt.Reason == string(d1client.ReasonAccepted) {
		level = slog.LevelDebug
	}
	log := l.log
	if j.Change != nil {
		log = log.With("changeId", j.Change.ID)
	}
	log.LogAttrs(context.Background(), level, "attempt",
		slog.String("orderId", j.OrderID.String()), slog.String("issuerRequestId", j.IssuerRequestID),
		slog.String("attemptId", c.Attempt.ID.String()), slog.String("kind", string(c.Attempt.Kind)),
		slog.String("outcome", c.Attempt.Outcome), slog.String("reason", c.Attempt.Reason),
		slog.Int("httpStatus", c.Attempt.HTTPStatus), slog.String("errorCode", c.Attempt.ErrorCode),
		slog.String("operationId", c.Attempt.OperationID), slog.String("correlationId", c.Attempt.CorrelationID),
		slog.Int64("durationMs", c.Attempt.Duration.Milliseconds()), slog.Int("try", j.Tries+1),
		slog.Int64("nextInMs", c.Next.RunIn.Milliseconds()))
}

// allotment is what the fleet allots a lane of this process.
type allotment struct {
	share     int     // calls at once
	perSecond float64 // calls begun in a second; 0 means no limit
	state     store.LaneState
	probeIn   time.Duration // until the probe of a stopped lane is due
	forget    bool          // claims are no longer what the database knows of
}

// allot is told by each beat.
func (l *lane) allot(ctx context.Context, now time.Time, a allotment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	again := l.heard && (a.state.Resumes > l.resumes || l.paused && a.state.PausedAt.IsZero() || l.stopped && a.state.StoppedAt.IsZero())
	if l.heard && a.state.Resumes > l.resumes {
		l.sending.resume()
		l.asking.resume()
	}
	if !l.heard || again || l.slots.share == 0 && a.share > 0 {
		l.hungry = [3]bool{true, true, true}
	}
	l.heard, l.resumes = true, a.state.Resumes
	l.paused, l.stopped = !a.state.PausedAt.IsZero(), !a.state.StoppedAt.IsZero()
	l.probeAt = time.Time{}
	if l.stopped {
		l.probeAt = now.Add(a.probeIn)
	}
	l.slots.share = a.share
	l.limit(now, a.perSecond)
	if l.paused || l.stopped || a.share == 0 || a.forget {
		l.giveUp(l.queue.drop(all)...)
	}
	l.metrics.share.Set(float64(a.share))
	l.metrics.inFlight.Set(float64(l.slots.busy))
	l.metrics.unstored.Set(float64(l.outcomes.unstored()))
	l.metrics.breakers(l.sending.state, l.asking.state)
	if !l.draining && ctx.Err() == nil {
		l.employ(ctx)
	}
	l.look()
}

// limit sets the rate. The burst is a tenth of a second's worth, so that claims can be
// made in batches all the same.
func (l *lane) limit(now time.Time, perSecond float64) {
	switch {
	case perSecond == 0:
		l.limiter = nil
	case l.limiter == nil:
		l.limiter = rate.NewLimiter(rate.Limit(perSecond), burst(perSecond))
	case l.limiter.Limit() != rate.Limit(perSecond):
		l.limiter.SetLimitAt(now, rate.Limit(perSecond))
		l.limiter.SetBurstAt(now, burst(perSecond))
	}
}

func burst(perSecond float64) int { return max(1, int(perSecond/10)) }

func direction(asks bool) string {
	if asks {
		return "asking"
	}
	return "sending"
}

// ahead is how many messages of a class are claimed ahead of free slots: about as many
// as there are slots, more where they are gone within a few milliseconds, so that no
// claim is made for a handful.
type ahead struct {
	depth  int
	fullAt time.Time // of the last claim that got all it asked for
}

const (
	maxAhead   = 256
	goneFast   = 20 * time.Millisecond
	goneSlowly = 200 * time.Millisecond
)

func (a *ahead) claimed(now time.Time, full bool, share int) {
	took := now.Sub(a.fullAt)
	switch {
	case !full, a.fullAt.IsZero():
	case took < goneFast:
		a.depth = min(2*a.depth, max(maxAhead, share))
	case took > goneSlowly:
		a.depth /= 2
	}
	a.depth = max(a.depth, share, 1)
	a.fullAt = time.Time{}
	if full {
		a.fullAt = now
	}
}

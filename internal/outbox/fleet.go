package outbox

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

// FleetConfig is how a process shares the lanes with others.
type FleetConfig struct {
	// Host names the machine or pod for people; "" means its own name.
	Host string
	// Beat is the time between two heartbeats, and half of it more by chance; 0 means
	// 1 s.
	Beat time.Duration
	Log  *slog.Logger
}

// Fleet is one process's place among the replicas that share the lanes. It owns a lane
// for each issuer, says that it lives, and allots each lane its share of the limits.
type Fleet struct {
	cfg     FleetConfig
	id      uuid.UUID
	store   *store.Store
	metrics *Metrics
	lanes   map[string]*lane // by name
	live    atomic.Int32
	early   chan struct{}    // a heartbeat is wanted now
	now     func() time.Time // the process's clock: for its skew only

	// Only the beat uses these.
	shares    map[string]*share
	skew      time.Duration
	failing   bool
	announced bool // the first heartbeat is out
}

// NewFleet makes a fleet without lanes. Add them before Run.
func NewFleet(cfg FleetConfig, st *store.Store, m *Metrics) (*Fleet, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a replica's id: %w", err)
	}
	if cfg.Host == "" {
		if cfg.Host, err = os.Hostname(); err != nil {
			cfg.Host = "unknown"
		}
	}
	setDefault(&cfg.Beat, time.Second)
	return &Fleet{
		cfg: cfg, id: id, store: st, metrics: m,
		lanes: make(map[string]*lane), shares: make(map[string]*share), now: time.Now, early: make(chan struct{}, 1),
	}, nil
}

// Add adds the lane of an issuer. It sends nothing before the first heartbeat.
func (f *Fleet) Add(cfg Config, d1 *d1client.Client) {
	l := newLane(cfg, f.store, d1, f.metrics)
	f.lanes[l.name] = l
	f.shares[l.name] = &share{settle: 2 * f.cfg.Beat}
}

// Wake makes a lane look for due messages now, or all of them when name is "". It never
// blocks.
func (f *Fleet) Wake(name string) {
	if l := f.lanes[name]; l != nil {
		l.wake()
	}
	if name == "" {
		for _, l := range f.lanes {
			l.wake()
		}
	}
}

// Look has this process see now what people did with a lane. It never blocks.
func (f *Fleet) Look() {
	select {
	case f.early <- struct{}{}:
	default:
	}
}

// Alone tells whether no other process is known to share the lanes: then nobody needs
// to be told of new messages.
func (f *Fleet) Alone() bool { return f.live.Load() == 1 }

// Run works until ctx is cancelled; then the lanes drain, and the process takes itself
// off the list.
func (f *Fleet) Run(ctx context.Context) {
	var lanes sync.WaitGroup
	for _, l := range f.lanes {
		lanes.Go(func() { l.run(ctx) })
	}
	var watching sync.WaitGroup
	var watch sync.Once
	for ctx.Err() == nil {
		f.beat(ctx)
		if !f.failing { // the history of the database is known
			watch.Do(func() { watching.Go(func() { f.watch(ctx) }) })
		}
		next := time.NewTimer(f.cfg.Beat + jitter(f.cfg.Beat/2))
		select {
		case <-next.C:
		case <-f.early:
		case <-ctx.Done():
		}
		next.Stop()
	}
	watching.Wait()
	ended := context.WithoutCancel(ctx) // a new name: a lane that has not begun yet looks at ctx
	f.linger(ended, &lanes)
	short, cancel := context.WithTimeout(ended, beatTimeout)
	defer cancel()
	if err := f.store.Depart(short, f.id); err != nil {
		f.cfg.Log.Warn("taking this process off the list of replicas failed; the others notice by themselves", "error", err)
	}
}

// linger keeps this process's share of the limits from the others until its calls under
// way have ended.
func (f *Fleet) linger(ctx context.Context, lanes *sync.WaitGroup) {
	ctx, ended := context.WithCancel(ctx)
	go func() {
		defer ended()
		lanes.Wait()
	}()
	again := time.NewTicker(f.cfg.Beat)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		if health, err := f.health(); err == nil {
			// When it fails the others take over sooner, which is no harm.
			_, _ = f.say(ctx, health)
		}
	}
}

// beatTimeout bounds one heartbeat.
const beatTimeout = 5 * time.Second

// beat says that this process lives, and passes on what that teaches. While the database
// is away everything stays as it was last heard.
func (f *Fleet) beat(ctx context.Context) {
	err := f.tryBeat(ctx)
	switch {
	case err != nil && ctx.Err() == nil && !f.failing:
		f.cfg.Log.Error("the heartbeat fails; the shares of the lanes stay as they are", "error", err)
	case err == nil && f.failing:
		f.cfg.Log.Info("the heartbeat works again")
	}
	f.failing = err != nil
}

func (f *Fleet) tryBeat(ctx context.Context) error {
	// How long a worker of any replica may still hold a claim.
	var lease time.Duration
	for _, l := range f.lanes {
		lease = max(lease, l.lease)
	}
	// After a failover it marks every message first, however long that takes.
	changed, err := f.store.CheckTimeline(ctx, lease)
	if err != nil {
		return err
	}
	health, err := f.health()
	if err != nil {
		return err
	}
	if !f.announced {
		// Two processes that start together do not see each other's first heartbeat,
		// but one of them sees it with its second: they never both believe to be alone.
		if _, err := f.say(ctx, health); err != nil {
			return err
		}
		f.announced = true
	}
	began, beganAt := time.Now(), f.now()
	fleet, err := f.say(ctx, health)
	if err != nil {
		return err
	}
	now := time.Now()
	// The database looked at its clock somewhere in the middle of the round trip.
	f.skew = fleet.Now.Sub(beganAt) - now.Sub(began)/2
	f.metrics.skew.Set(f.skew.Seconds())
	f.metrics.replicas.Set(float64(fleet.Live))
	if f.live.Swap(int32(fleet.Live)) != int32(fleet.Live) { //nolint:gosec // some replicas, never billions
		f.cfg.Log.Info("replicas", "live", fleet.Live, "rank", fleet.Rank)
	}
	for name, l := range f.lanes {
		state := fleet.Lanes[name]
		a := allotment{
			share:  f.shares[name].allot(now, fleet.Share(l.cfg.Concurrency), fleet.Live == 1),
			state:  state,
			forget: changed,
		}
		if l.cfg.RatePerSecond > 0 {
			// Shared among those that may make a call at all.
			a.perSecond = float64(l.cfg.RatePerSecond) / float64(min(fleet.Live, l.cfg.Concurrency))
		}
		if !state.StoppedAt.IsZero() {
			a.probeIn = max(0, state.ProbeAt.Sub(fleet.Now))
		}
		l.allot(ctx, now, a)
	}
	return nil
}

// say sends a heartbeat. It is not cut short when ctx ends: PostgreSQL may carry out
// what nobody waits for any more, and a row that is written after Depart has removed it
// keeps a share of the limits from the others until it is too old.
func (f *Fleet) say(ctx context.Context, health map[string]json.RawMessage) (store.Fleet, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatTimeout)
	defer cancel()
	return f.store.Beat(ctx, store.Replica{ID: f.id, Host: f.cfg.Host, Health: health})
}

// watch looks at the orders whose time has come, after each beat, and whatever D1 does:
// late is late. It is apart from the beat, which must not wait for it.
func (f *Fleet) watch(ctx context.Context) {
	adopted := make(map[string]*adoption, len(f.lanes))
	for name := range f.lanes {
		adopted[name] = &adoption{}
	}
	failing := false
	for ctx.Err() == nil {
		var next pace
		var err error
		for name, l := range f.lanes {
			p, failed := f.look(ctx, l, adopted[name])
			next, err = max(next, p), cmp.Or(err, failed) // one issuer's trouble is not the others'
		}
		err = cmp.Or(err, f.expireChanges(ctx))
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			f.cfg.Log.Error("looking for orders that are late, silent or to be sent now, and for changes that expire, fails", "error", err)
		case err == nil && failing:
			f.cfg.Log.Info("looking for orders that are late, silent or to be sent now, and for changes that expire, works again")
		}
		if failing = err != nil; failing {
			next = paceBeat
		}
		pause := f.cfg.Beat
		switch next {
		case paceNow:
			continue
		case paceSoon:
			pause /= 10
		case paceBeat:
		}
		timer := time.NewTimer(pause + jitter(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// pace is how soon to look again.
type pace int

const (
	paceBeat pace = iota
	paceSoon      // there may be more to ask about, when what is being asked is answered
	paceNow       // there are more to look at
)

// look looks at orders of one lane.
func (f *Fleet) look(ctx context.Context, l *lane, a *adoption) (pace, error) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	questions := l.questions()
	checked, err := f.store.Check(ctx, l.cfg.IssuerID, questions)
	if err == nil || checked.Behind > 0 {
		l.metrics.behind.Set(checked.Behind.Seconds())
	}
	if err != nil {
		return paceBeat, err
	}
	next := paceBeat
	switch {
	case checked.More:
		next = paceNow
	case checked.Looked > 0 && questions > 0:
		next = paceSoon
	}
	if checked.Asked > 0 {
		l.wake()
	}
	return next, a.goOn(ctx, f.store, l.cfg.IssuerID)
}

// expireChanges ends the waiting for D1's word on changes whose time is over.
func (f *Fleet) expireChanges(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	_, err := f.store.ExpireChanges(ctx)
	return err
}

// adoption goes through the open orders of an issuer, looking for those that nobody looks
// at. It begins anew now and then: a replica of an earlier release may store such orders,
// and a program that had no limits may get some.
type adoption struct {
	after uuid.UUID
	again time.Time
}

const adoptEvery = time.Hour

func (a *adoption) goOn(ctx context.Context, st *store.Store, issuer string) (err error) {
	if time.Now().Before(a.again) {
		return nil
	}
	if a.after, err = st.Adopt(ctx, issuer, a.after); err == nil && a.after == uuid.Nil {
		a.again = time.Now().Add(adoptEvery)
	}
	return err
}

// questions is how many questions about orders that nothing is heard of all replicas
// together may have open or waiting: a part of what the lane can do, so that orders come
// first, and those questions that a sending waits for; and none while it is no use.
func (l *lane) questions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused || l.stopped || l.slots.share == 0 || l.asking.state != breakerClosed {
		return 0
	}
	return max(1, l.cfg.Concurrency/4)
}

// health is what this process says of its lanes.
func (f *Fleet) health() (map[string]json.RawMessage, error) {
	health := make(map[string]json.RawMessage, len(f.lanes))
	for name, l := range f.lanes {
		h := l.health(time.Now(), f.now().Add(f.skew))
		h.ClockSkewMs = f.skew.Milliseconds()
		text, err := json.Marshal(h)
		if err != nil {
			return nil, fmt.Errorf("writing the health of a lane: %w", err)
		}
		health[name] = text
	}
	return health, nil
}

// share is this process's share of a lane's concurrency. It shrinks at once, and grows
// only when the others must have heard of it too: so the limit holds while replicas come
// and go.
type share struct {
	settle  time.Duration
	current int
	since   time.Time // when a greater one was first heard of
}

func (s *share) allot(now time.Time, heard int, alone bool) int {
	switch {
	case heard <= s.current || alone:
		s.current, s.since = heard, time.Time{}
	case s.since.IsZero():
		s.since = now
	case now.Sub(s.since) >= s.settle:
		s.current, s.since = heard, time.Time{}
	}
	return s.current
}

package main

import (
	"context"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Sending is measured with D1 as a stub that takes all, and the service with the
// example's settings. Orders are put into the outbox beforehand. D1 keeps its
// answers back until the service has as many calls open as it makes at once; from
// then on it is measured until what came of the last call is stored.

// memoryLimit is what the service is told (GOMEMLIMIT), and memoryWanted what it is
// to stay below with that.
const (
	memoryLimit  = "90MiB"
	memoryWanted = 100 << 20
)

// defaultConcurrency is the example's sending.concurrency.
const defaultConcurrency = 16

// How D1 is when it is slow.
const (
	slowConcurrency = 256
	slowDelay       = 100 * time.Millisecond
)

// dispatch is one run of sending.
type dispatch struct {
	name        string
	orders      int
	concurrency int
	delay       time.Duration // of D1's answers
}

// Names of the runs.
const (
	nameDispatch     = "dispatch"
	nameBare         = "bare client"
	nameSlowDispatch = "dispatch, D1 100 ms"
	nameSlowBare     = "bare client, 100 ms"
	nameRiverWorker  = "River worker"
	nameRiverRecord  = "River worker, record"
	nameShort        = "short backlog"
	nameLong         = "long backlog"
)

// figure is something measured that is no rate.
type figure struct{ what, value, wanted string }

func (b *bench) figure(what, wanted, format string, args ...any) {
	f := figure{what, fmt.Sprintf(format, args...), wanted}
	b.figures = append(b.figures, f)
	b.printf("         %s: %s\n", f.what, f.value)
}

// sendingParts are those of -only.
var sendingParts = []string{"dispatch", "slow", "river-worker", "backlog", "idle"}

func (b *bench) measureSending(ctx context.Context) (err error) {
	if !slices.ContainsFunc(sendingParts, b.wants) {
		return nil
	}
	b.server.stop() // it would take orders that are to be sent
	if b.river != nil {
		b.river.stop()
	}
	if b.stub, err = b.site.startD1Stub(ctx); err != nil {
		return err
	}
	defer b.stub.stop()
	if err := b.findBody(ctx); err != nil {
		return err
	}
	var all []measurement
	add := func(measure func(context.Context, dispatch) (*result, error), d dispatch) {
		all = append(all, func() (*result, error) { return measure(ctx, d) })
	}
	if b.wants("dispatch") {
		add(b.measureDispatch, dispatch{nameDispatch, b.dispatch, defaultConcurrency, 0})
		add(b.measureBare, dispatch{nameBare, b.dispatch, defaultConcurrency, 0})
	}
	if b.wants("slow") {
		n := max(2*slowConcurrency, b.dispatch*2/5)
		add(b.measureDispatch, dispatch{nameSlowDispatch, n, slowConcurrency, slowDelay})
		add(b.measureBare, dispatch{nameSlowBare, n, slowConcurrency, slowDelay})
	}
	if b.wants("river-worker") {
		for _, workers := range b.riverWorkers {
			n := max(workers, b.dispatch/5)
			add(b.measureRiverSending, dispatch{nameRiverWorker, n, workers, 0})
			add(b.measureRiverSending, dispatch{nameRiverRecord, n, workers, 0})
		}
	}
	if err := b.measureRounds(all); err != nil {
		return err
	}
	if b.wants("backlog") {
		if err := b.measureBacklog(ctx); err != nil {
			return err
		}
	}
	if b.wants("idle") {
		if err := b.measureIdle(ctx); err != nil {
			return err
		}
	}
	if b.profile != "" && b.wants("dispatch") {
		return b.profileSending(ctx)
	}
	return nil
}

// findBody lets the service send one order, for the body of it.
func (b *bench) findBody(ctx context.Context) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	if err := b.stub.control(ctx, stubControl{Reset: true, Limit: 1}); err != nil {
		return err
	}
	svc, err := b.startSender(ctx, defaultConcurrency)
	if err != nil {
		return err
	}
	defer svc.stop()
	if _, err := svc.place(ctx, b.form(svc)); err != nil {
		return err
	}
	if err := b.stub.await(ctx, "one order", func(s stubState) bool { return s.Answered == 1 }); err != nil {
		return err
	}
	b.sample, err = b.stub.sample(ctx)
	return err
}

// startSender runs the service as it is by default, towards the stub. The one before
// it may have been killed, and would seem to be alive for some time.
func (b *bench) startSender(ctx context.Context, concurrency int) (*service, error) {
	if _, err := b.db.conn.Exec(ctx, "DELETE FROM replicas"); err != nil {
		return nil, fmt.Errorf("forgetting replicas: %w", err)
	}
	return b.site.start(ctx, "sender", b.db.url(), b.stub.address, []string{"GOMEMLIMIT=" + memoryLimit},
		map[string]string{fmt.Sprintf("concurrency: %d", defaultConcurrency): "concurrency: " + strconv.Itoa(concurrency)})
}

// seed puts n accepted orders into empty tables: the service takes them in, as one
// batch, and is ended.
func (b *bench) seed(ctx context.Context, n int) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	seeder, err := b.site.startService(ctx, "seeder", b.db.url())
	if err != nil {
		return err
	}
	none := func() error { return nil }
	_, err = seeder.uploadBatch(ctx, b.dir, b.site.encryption, n, false, none, none)
	seeder.kill() // before it can learn that its call to D1 was cut
	seeder.stop()
	if err != nil {
		return err
	}
	return b.freshen(ctx)
}

// awaitAlone waits until the sessions of services that were ended are gone: what
// these had asked for last may still be under way.
func (b *bench) awaitAlone(ctx context.Context) error {
	return until(ctx, 5*time.Millisecond, "sessions of a service that was ended are still there", func() (bool, error) {
		var others int
		err := b.db.conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&others)
		return others == 0, err
	})
}

// clear empties the tables when nobody is at work.
func (b *bench) clear(ctx context.Context) error {
	if err := b.awaitAlone(ctx); err != nil {
		return err
	}
	return b.db.reset(ctx)
}

// freshen makes a message that a killed service had claimed one that nobody ever
// claimed. Its D1 kept its answer back, so nothing is lost.
func (b *bench) freshen(ctx context.Context) error {
	if err := b.awaitAlone(ctx); err != nil {
		return err
	}
	_, err := b.db.conn.Exec(ctx, `
		WITH claimed AS (DELETE FROM outbox WHERE claim_token IS NOT NULL OR tries > 0
			RETURNING lane, kind, class, issuer_id, order_id, card_id)
		INSERT INTO outbox (lane, kind, class, issuer_id, order_id, card_id) SELECT * FROM claimed`)
	if err != nil {
		return fmt.Errorf("giving messages back: %w", err)
	}
	return b.settle(ctx)
}

// settle does what autovacuum would have done had the orders come more slowly. No
// checkpoint follows: what is then touched for the first time would go to the WAL
// whole, and a short run in a long backlog would pay for that all alone.
func (b *bench) settle(ctx context.Context) error {
	if _, err := b.db.conn.Exec(ctx, "VACUUM (ANALYZE)"); err != nil {
		return fmt.Errorf("vacuuming: %w", err)
	}
	return nil
}

// snapshotSending counts the stub as a part of the generator.
func (b *bench) snapshotSending(ctx context.Context, svc *service, sent *atomic.Int64) (snapshot, error) {
	s, err := b.snapshot(ctx, svc, sent)
	if err != nil {
		return s, err
	}
	stub, err := cpuOfTree(b.stub.cmd.Process.Pid)
	s.generator += stub
	return s, err
}

// release lets D1 answer, once all calls that svc makes at once wait there, and
// measures until all is stored.
func (b *bench) release(ctx context.Context, svc *service, d dispatch, stored func(context.Context) (bool, error), check func(context.Context) error) (*result, error) {
	await := func(what string, reached func(stubState) bool) error {
		err := b.stub.await(ctx, what, func(s stubState) bool { return reached(s) || svc.hasEnded() })
		if err == nil && svc.hasEnded() {
			err = errors.New(svc.name + " ended, see " + svc.log)
		}
		return err
	}
	err := await("the first calls", func(s stubState) bool { return s.Waiting >= int64(min(d.concurrency, d.orders)) })
	if err != nil {
		return nil, err
	}
	var sent atomic.Int64
	from, err := b.snapshotSending(ctx, svc, &sent)
	if err != nil {
		return nil, err
	}
	if err := b.db.forgetStatements(ctx); err != nil {
		return nil, err
	}
	started := time.Now()
	if err := b.stub.control(ctx, stubControl{Limit: int64(d.orders), Delay: d.delay}); err != nil {
		return nil, err
	}
	if b.onRelease != nil {
		b.onRelease(svc)
		defer b.beforeEnd()
	}
	err = await("all orders", func(s stubState) bool { return s.Answered >= int64(d.orders) })
	if err != nil {
		return nil, err
	}
	err = until(ctx, 2*time.Millisecond, d.name+": what was sent is not stored", func() (bool, error) { return stored(ctx) })
	if err != nil {
		return nil, err
	}
	took := time.Since(started)
	sent.Store(int64(d.orders))
	to, err := b.snapshotSending(ctx, svc, &sent)
	if err != nil {
		return nil, err
	}
	if err := b.printStatements(ctx); err != nil {
		return nil, err
	}
	s, err := b.stub.state(ctx)
	if err != nil {
		return nil, err
	}
	if s.Answered != int64(d.orders) || s.Repeats > 0 || s.Others > 0 {
		return nil, fmt.Errorf("%s: %d orders were to be sent, and D1 got %+v", d.name, d.orders, s)
	}
	if err := check(ctx); err != nil {
		return nil, err
	}
	return &result{name: d.name, clients: d.concurrency, orders: d.orders, rate: float64(d.orders) / took.Seconds(), cost: from.perOrder(to)}, nil
}

// measureDispatch puts orders into the outbox and measures how fast they are sent.
func (b *bench) measureDispatch(ctx context.Context, d dispatch) (*result, error) {
	if err := b.seed(ctx, d.orders); err != nil {
		return nil, err
	}
	return b.measureSeeded(ctx, d, 0)
}

// measureSeeded measures the first d.orders of those that are there; sentBefore
// were sent already.
func (b *bench) measureSeeded(ctx context.Context, d dispatch, sentBefore int) (*result, error) {
	if err := b.stub.control(ctx, stubControl{Reset: true}); err != nil {
		return nil, err
	}
	svc, err := b.startSender(ctx, d.concurrency)
	if err != nil {
		return nil, err
	}
	defer svc.kill()
	all, err := b.db.countOrders(ctx)
	if err != nil {
		return nil, err
	}
	want := sentBefore + d.orders
	r, err := b.release(ctx, svc, d, func(ctx context.Context) (bool, error) {
		var n int
		err := b.db.conn.QueryRow(ctx, `SELECT count(*) FROM operations`).Scan(&n)
		return n >= want, err
	}, func(ctx context.Context) error { return b.checkSent(ctx, d.name, want, all-want) })
	if err != nil {
		return nil, err
	}
	return r, b.notePeak(svc, d.name)
}

// checkSent counts what is stored when so many were sent and others were left. It
// takes a moment until all of it is.
func (b *bench) checkSent(ctx context.Context, name string, sent, left int) error {
	var got, want struct{ submitted, operations, attempts, waiting int }
	want.submitted, want.operations, want.attempts, want.waiting = sent, sent, sent, left
	err := until(ctx, 50*time.Millisecond, name+": not all is stored as it should", func() (bool, error) {
		err := b.db.conn.QueryRow(ctx, `
			SELECT (SELECT count(*) FROM order_state s JOIN operations p ON p.issuer_id = s.issuer_id AND p.operation_id = s.operation_id
					AND p.order_id = s.order_id WHERE s.status = 'SUBMITTED'),
				(SELECT count(*) FROM operations), (SELECT count(*) FROM attempts), (SELECT count(*) FROM outbox)`).
			Scan(&got.submitted, &got.operations, &got.attempts, &got.waiting)
		return got == want, err
	})
	if err != nil {
		return fmt.Errorf("%w: %+v, wanted %+v", err, got, want)
	}
	return nil
}

// notePeak keeps the most memory of each kind of run.
func (b *bench) notePeak(svc *service, name string) error {
	peak, err := svc.peakRSS()
	if err == nil {
		b.sendingPeaks[name] = max(b.sendingPeaks[name], peak)
	}
	return err
}

// measureBacklog compares sending the same number of orders when there are no
// others and when there are very many, and sees how long a single order takes
// then, with D1 slow so that all calls are always taken.
func (b *bench) measureBacklog(ctx context.Context) error {
	n := max(1, b.dispatch/5)
	short := func() error {
		r, err := b.measureDispatch(ctx, dispatch{nameShort, n, defaultConcurrency, 0})
		return b.keep(0, r, err)
	}
	if err := short(); err != nil {
		return err
	}
	sendable := n*b.rounds + max(600, overtakenEach*b.singles)
	long := max(b.backlog, sendable)
	if err := b.seed(ctx, sendable); err != nil {
		return err
	}
	if err := b.fillBacklog(ctx, long-sendable); err != nil {
		return err
	}
	for round := range b.rounds {
		r, err := b.measureSeeded(ctx, dispatch{nameLong, n, defaultConcurrency, 0}, round*n)
		if err := b.keep(round, r, err); err != nil {
			return err
		}
		if err := b.freshen(ctx); err != nil {
			return err
		}
	}
	if err := b.measureOvertaking(ctx, long-b.rounds*n); err != nil {
		return err
	}
	for range b.rounds - 1 {
		if err := short(); err != nil {
			return err
		}
	}
	return nil
}

// overtakenEach is more than what is sent while one of b.singles overtakes: a tenth
// of them do, each with 16 calls in 100 ms and a pause of as much.
const overtakenEach = 15

// fillBacklog adds n orders of a batch behind those that wait: rows like those of an
// order, whose content cannot be opened, since it is bound to that order. They are
// never sent, or what is stored does not add up.
func (b *bench) fillBacklog(ctx context.Context, n int) error {
	const chunk, sessions = 50_000, 2
	e := manyOrders
	other := map[string]string{"outbox.class": "1", "orders.batch_id": "gen_random_uuid()"}
	started := time.Now()
	var from atomic.Int64
	fill := func() error {
		conn, err := pgx.Connect(ctx, b.db.url())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		if _, err := conn.Exec(ctx, "SET synchronous_commit = off"); err != nil {
			return err
		}
		for {
			to := int(from.Add(chunk))
			first := to - chunk + 1
			if first > n {
				return nil
			}
			series := fmt.Sprintf("generate_series(%d, %d) n", first, min(to, n))
			for _, r := range b.rows.rows {
				if _, err := conn.Exec(ctx, b.rows.insertMany(r, e, series, other)); err != nil {
					return fmt.Errorf("filling %s: %w", r.table, err)
				}
			}
		}
	}
	failed := make([]error, sessions)
	var wg sync.WaitGroup
	for i := range failed {
		wg.Go(func() { failed[i] = fill() })
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	b.printf("%d more orders in the backlog, made in %s\n", n, time.Since(started).Round(time.Second))
	return b.settle(ctx)
}

// measureOvertaking places single orders behind those of a batch.
func (b *bench) measureOvertaking(ctx context.Context, backlog int) error {
	if err := b.stub.control(ctx, stubControl{Reset: true, Limit: 1 << 40, Delay: slowDelay}); err != nil {
		return err
	}
	svc, err := b.startSender(ctx, defaultConcurrency)
	if err != nil {
		return err
	}
	defer svc.kill()
	if err := b.stub.await(ctx, "the batch", func(s stubState) bool { return s.Answered >= defaultConcurrency }); err != nil {
		return err
	}
	took, err := b.placeSingles(ctx, svc, max(5, b.singles/10), slowDelay)
	if err != nil {
		return err
	}
	if err := b.notePeak(svc, "overtaking"); err != nil {
		return err
	}
	b.figure(fmt.Sprintf("201 to D1 (100 ms), %d of a batch waiting", backlog), "within 1 s",
		"median %s, slowest %s of %d", milliseconds(took[len(took)/2]), milliseconds(took[len(took)-1]), len(took))
	return nil
}

// placeSingles places orders now and then and returns how long after its 201 each
// reached D1, sorted.
func (b *bench) placeSingles(ctx context.Context, svc *service, n int, pauses time.Duration) ([]time.Duration, error) {
	f := b.form(svc)
	accepted := make(map[string]time.Time, n)
	for range n {
		ids, err := svc.place(ctx, f)
		if err != nil {
			return nil, err
		}
		accepted[string(ids.card[:])] = time.Now()
		if err := pause(ctx, pauses/2+randv2.N(pauses)); err != nil {
			return nil, err
		}
	}
	var arrivals map[string]time.Time
	err := until(ctx, 50*time.Millisecond, "not all single orders reached D1", func() (bool, error) {
		var err error
		if arrivals, err = b.stub.arrivals(ctx); err != nil {
			return false, err
		}
		for card := range accepted {
			if arrivals[card].IsZero() {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for card, at := range accepted {
		// The call may be on its way before the caller has read the 201.
		took = append(took, max(0, arrivals[card].Sub(at)))
	}
	slices.Sort(took)
	return took, nil
}

// measureIdle measures single orders, what waiting for them costs, and how long
// orders under way take while others are accepted.
func (b *bench) measureIdle(ctx context.Context) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	if err := b.stub.control(ctx, stubControl{Reset: true, Limit: 1 << 40}); err != nil {
		return err
	}
	svc, err := b.startSender(ctx, defaultConcurrency)
	if err != nil {
		return err
	}
	defer svc.stop()
	if _, err := b.placeSingles(ctx, svc, 3, 10*time.Millisecond); err != nil { // connections, the token
		return err
	}
	took, err := b.placeSingles(ctx, svc, b.singles, 100*time.Millisecond)
	if err != nil {
		return err
	}
	b.figure(fmt.Sprintf("201 to D1, idle, %d orders", len(took)), "median at most 10 ms", "median %s, p90 %s, p99 %s",
		milliseconds(took[len(took)/2]), milliseconds(took[len(took)*9/10]), milliseconds(took[len(took)*99/100]))
	total := len(took) + 3
	if err := b.printAcceptTo202(ctx, "idle", total); err != nil {
		return err
	}
	if err := b.measureRest(ctx, svc); err != nil {
		return err
	}
	if err := b.db.reset(ctx); err != nil {
		return err
	}
	placed, err := b.placeSteadily(ctx, svc)
	if err != nil {
		return err
	}
	if err := b.printAcceptTo202(ctx, fmt.Sprintf("%d orders/s", steadyRate), placed); err != nil {
		return err
	}
	return b.notePeak(svc, "idle")
}

// measureRest measures the CPU time of a service that has nothing to do.
func (b *bench) measureRest(ctx context.Context, svc *service) error {
	cpu := func(pids ...int) (list []time.Duration, err error) {
		for _, pid := range pids {
			d, err := cpuOfTree(pid)
			if err != nil {
				return nil, err
			}
			list = append(list, d)
		}
		return list, nil
	}
	from, err := cpu(svc.cmd.Process.Pid, b.db.pid)
	if err != nil {
		return err
	}
	if err := pause(ctx, b.rest); err != nil {
		return err
	}
	to, err := cpu(svc.cmd.Process.Pid, b.db.pid)
	if err != nil {
		return err
	}
	b.figure(fmt.Sprintf("CPU of a core, idle, over %s", b.rest), "service below 1 %", "service %.2f %%, PostgreSQL %.2f %%",
		100*(to[0]-from[0]).Seconds()/b.rest.Seconds(), 100*(to[1]-from[1]).Seconds()/b.rest.Seconds())
	return nil
}

// steadyRate is how many orders come each second while they are also sent: four
// times as many cards as the world makes.
const steadyRate = 500

// placeSteadily lets several clients place orders at an even rate.
func (b *bench) placeSteadily(ctx context.Context, svc *service) (int, error) {
	const clients = 8
	var accepted atomic.Int64
	none := func() error { return nil }
	l, err := drivePaced(ctx, svc.api, b.form(svc), clients, clients*time.Second/steadyRate, 0, b.duration, &accepted, none, none)
	if err != nil {
		return 0, err
	}
	if len(l.errs) > 0 {
		return 0, fmt.Errorf("placing orders: %v", l.errs)
	}
	return int(accepted.Load()), nil
}

// printAcceptTo202 prints how long after they were accepted the answers to all n
// orders were stored, as the rows tell.
func (b *bench) printAcceptTo202(ctx context.Context, name string, n int) error {
	err := until(ctx, 50*time.Millisecond, "not all orders were sent", func() (bool, error) {
		var sent int
		err := b.db.conn.QueryRow(ctx, `SELECT count(*) FROM operations`).Scan(&sent)
		return sent >= n, err
	})
	if err != nil {
		return err
	}
	if err := b.checkSent(ctx, name, n, 0); err != nil {
		return err
	}
	var ms []float64
	err = b.db.conn.QueryRow(ctx, `
		SELECT percentile_disc(ARRAY[0.5, 0.9, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM a.created_at - o.created_at)::float8 * 1000)
		FROM orders o JOIN attempts a ON a.issuer_id = o.issuer_id AND a.order_id = o.id AND a.kind = 'submit'`).Scan(&ms)
	if err != nil {
		return fmt.Errorf("reading how long orders took: %w", err)
	}
	b.figure(fmt.Sprintf("accept to 202 stored, %s", name), "-", "p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms", ms[0], ms[1], ms[2], ms[3])
	return nil
}

// keep shows a result and keeps it if it is the best of its kind.
func (b *bench) keep(round int, r *result, err error) error {
	if err != nil {
		return err
	}
	b.progress(round, r)
	for i, old := range b.results {
		if old.name == r.name && old.clients == r.clients {
			if r.rate > old.rate {
				b.results[i] = r
			}
			return nil
		}
	}
	b.results = append(b.results, r)
	return nil
}

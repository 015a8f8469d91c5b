package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// snapshot is what is read before and after a run; the differences, divided by
// the orders between, are what an order costs.
type snapshot struct {
	at           time.Time
	orders       int64
	transactions int64 // transaction ids given out: commits that wrote something
	wal          int64 // bytes
	server       time.Duration
	postgres     time.Duration
	generator    time.Duration
	machine      time.Duration // all that was not idle

	allocations allocations
	allocOrders int64 // when the allocations were read
}

// cost of one order.
type cost struct {
	server, postgres, generator time.Duration // of CPU
	others                      float64       // share of the machine that others took
	transactions, wal           float64
	allocations                 allocations
}

func (c cost) cpu() time.Duration { return max(1, c.server+c.postgres+c.generator) }

// result is one measured run.
type result struct {
	name     string
	clients  int
	orders   int
	rate     float64
	p50, p99 time.Duration // p50 is the mean for pgbench
	errs     map[string]int
	cost     cost
}

// snapshot reads everything; svc is nil when no service is at work.
func (b *bench) snapshot(ctx context.Context, svc *service, accepted *atomic.Int64) (s snapshot, err error) {
	s.at, s.orders = time.Now(), accepted.Load()
	err = b.db.conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_current_wal_insert_lsn() - '0/0'`).
		Scan(&s.transactions, &s.wal)
	if err != nil {
		return s, err
	}
	if s.postgres, err = cpuOfTree(b.db.pid); err != nil {
		return s, err
	}
	if svc != nil {
		if s.server, err = cpuOfTree(svc.cmd.Process.Pid); err != nil {
			return s, err
		}
		s.allocOrders = accepted.Load()
		if s.allocations, err = svc.allocations(ctx); err != nil {
			return s, err
		}
	}
	s.generator = ownCPU()
	s.machine, err = machineCPU()
	return s, err
}

// perOrder is what lies between two snapshots.
func (s snapshot) perOrder(end snapshot) cost {
	n := float64(max(1, end.orders-s.orders))
	each := func(d time.Duration) time.Duration { return time.Duration(float64(d) / n) }
	c := cost{
		server: each(end.server - s.server), postgres: each(end.postgres - s.postgres), generator: each(end.generator - s.generator),
		transactions: float64(end.transactions-s.transactions) / n, wal: float64(end.wal-s.wal) / n,
	}
	m := float64(max(1, end.allocOrders-s.allocOrders))
	c.allocations = allocations{
		(end.allocations.objects - s.allocations.objects) / m, (end.allocations.bytes - s.allocations.bytes) / m,
	}
	ours := end.server - s.server + end.postgres - s.postgres + end.generator - s.generator
	all := time.Duration(runtime.NumCPU()) * end.at.Sub(s.at)
	c.others = max(0, float64(end.machine-s.machine-ours)/float64(all))
	return c
}

// machineCPU is the CPU time of everything on this machine.
func machineCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat is not understood: %s", first)
	}
	var sum time.Duration
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}

// measureAccept measures a service that accepts orders over HTTP.
func (b *bench) measureAccept(ctx context.Context, name string, svc *service, clients int, duration time.Duration) (*result, error) {
	if err := b.db.reset(ctx); err != nil {
		return nil, err
	}
	return b.driveService(ctx, name, svc, clients, duration)
}

func (b *bench) driveService(ctx context.Context, name string, svc *service, clients int, duration time.Duration) (*result, error) {
	var accepted atomic.Int64
	var from, to snapshot
	l, err := drive(ctx, svc.api, b.form(svc), clients, b.warm, duration, &accepted,
		func() (err error) { from, err = b.snapshot(ctx, svc, &accepted); return err },
		func() (err error) { to, err = b.snapshot(ctx, svc, &accepted); return err })
	if err != nil {
		return nil, err
	}
	stored, err := b.db.countOrders(ctx)
	if err != nil {
		return nil, err
	}
	if before := b.stored; int64(stored-before) < accepted.Load() {
		return nil, fmt.Errorf("%s answered 201 %d times and stored %d orders", name, accepted.Load(), stored-before)
	}
	return &result{
		name: name, clients: clients, orders: l.orders, rate: l.rate, p50: l.p50, p99: l.p99, errs: l.errs, cost: from.perOrder(to),
	}, nil
}

// measurePgbench measures the ceiling.
func (b *bench) measurePgbench(ctx context.Context, clients int, pipeline bool, duration time.Duration) (*result, error) {
	if err := b.db.reset(ctx); err != nil {
		return nil, err
	}
	p, err := b.pgbench.start(ctx, b.db.conn, clients, pipeline)
	if err != nil {
		return nil, err
	}
	// pgbench is the generator here, and there is no service.
	from, to, err := func() (from, to snapshot, err error) {
		if err := pause(ctx, b.warm); err != nil {
			return from, to, err
		}
		if from, err = b.snapshotPgbench(ctx, p); err != nil {
			return from, to, err
		}
		if err := pause(ctx, duration); err != nil {
			return from, to, err
		}
		to, err = b.snapshotPgbench(ctx, p)
		return from, to, err
	}()
	if err := errors.Join(err, p.stop(ctx, b.db.conn)); err != nil {
		return nil, err
	}
	n := to.orders - from.orders
	stored, err := b.db.countOrders(ctx)
	if err != nil {
		return nil, err
	}
	if int64(stored) < n {
		return nil, fmt.Errorf("pgbench made %d transactions, and %d orders are stored", n, stored)
	}
	rate := float64(n) / to.at.Sub(from.at).Seconds()
	return &result{
		name: pgbenchName(pipeline), clients: clients, orders: int(n), rate: rate,
		p50: time.Duration(float64(clients) / rate * float64(time.Second)), cost: from.perOrder(to),
	}, nil
}

// snapshotPgbench counts an order for each transaction.
func (b *bench) snapshotPgbench(ctx context.Context, p *running) (snapshot, error) {
	s, err := b.snapshot(ctx, nil, &atomic.Int64{})
	if err != nil {
		return s, err
	}
	s.orders = s.transactions
	s.generator, err = cpuOfTree(p.cmd.Process.Pid)
	return s, err
}

func pgbenchName(pipeline bool) string {
	if pipeline {
		return "pgbench, pipelined"
	}
	return "pgbench"
}

// measureBatch measures the upload of one batch.
func (b *bench) measureBatch(ctx context.Context, svc *service, n int, compressed bool) (*result, int64, error) {
	if err := b.db.reset(ctx); err != nil {
		return nil, 0, err
	}
	var orders atomic.Int64
	var from, to snapshot
	up, err := svc.uploadBatch(ctx, b.dir, b.site.encryption, n, compressed,
		func() (err error) { from, err = b.snapshot(ctx, svc, &orders); return err },
		func() (err error) {
			orders.Store(int64(n))
			to, err = b.snapshot(ctx, svc, &orders)
			return err
		})
	if err != nil {
		return nil, 0, err
	}
	stored, err := b.db.countOrders(ctx)
	if err != nil {
		return nil, 0, err
	}
	if stored != n {
		return nil, 0, fmt.Errorf("a batch of %d orders was answered, and %d are stored", n, stored)
	}
	name := "batch"
	if compressed {
		name = "batch, gzip"
	}
	return &result{name: name, clients: 1, orders: n, rate: float64(n) / up.took.Seconds(), cost: from.perOrder(to)}, up.peak, nil
}

// roundTrips counts them in a run of its own, through a proxy.
func (b *bench) roundTrips(ctx context.Context, clients int, duration time.Duration) (float64, error) {
	proxy, url, err := countRoundTrips(ctx, b.db.url())
	if err != nil {
		return 0, err
	}
	defer proxy.stop()
	svc, err := b.site.startService(ctx, "server-counted", url)
	if err != nil {
		return 0, err
	}
	defer svc.stop()
	if err := b.db.reset(ctx); err != nil {
		return 0, err
	}
	var accepted atomic.Int64
	var trips [2]int64
	var orders [2]int64
	read := func(i int) func() error {
		return func() error {
			trips[i], orders[i] = proxy.trips.Load(), accepted.Load()
			return nil
		}
	}
	if _, err := drive(ctx, svc.api, b.form(svc), clients, b.warm, duration, &accepted, read(0), read(1)); err != nil {
		return 0, err
	}
	return float64(trips[1]-trips[0]) / float64(max(1, orders[1]-orders[0])), nil
}

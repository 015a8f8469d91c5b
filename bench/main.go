// Command bench measures how fast orders are accepted, and compares it, in the
// same run and on the same PostgreSQL, with what the database can do at best
// (pgbench writing the very same rows, one order per transaction) and with a
// service that does it in the usual way (a River job in the same transaction).
// It prints ratios: they travel from machine to machine, rates do not.
//
// It asserts nothing about time; it fails only when something does not work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) == 3 {
		// Other processes of the benchmark are this binary too.
		if command := commands[os.Args[1]]; command != nil {
			if err := command(os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				return 1
			}
			return 0
		}
	}
	b := &bench{out: os.Stdout, sendingPeaks: make(map[string]int64)}
	if err := b.parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench: FAILED:", err)
		return 1
	}
	return 0
}

var commands = map[string]func(string) error{
	riverCommand: runRiver, riverWorkerCommand: runRiverWorker, stubCommand: runD1Stub,
}

// bench is one run of the benchmark.
type bench struct {
	out io.Writer

	// Flags.
	root           string
	duration       time.Duration
	warm           time.Duration
	rounds         int
	clients        []int
	pgbenchClients []int
	batch          int
	batchMemory    string
	maxConns       int
	idempotencyKey bool
	only           string
	preload        int
	quick          bool
	profile        string
	statements     bool
	dispatch       int
	backlog        int
	singles        int
	rest           time.Duration
	riverWorkers   []int

	dir      string
	db       *database
	site     *site
	server   *service
	river    *service
	rows     *captured
	pgbench  *pgbench
	stored   int // orders that were there before
	notified int // notifications that were
	results  []*result
	peaks    []string
	trips    float64

	stub         *d1Stub
	sample       stubSample // of what the service posts
	figures      []figure
	sendingPeaks map[string]int64 // of the service's memory, by run
	onRelease    func(*service)   // while sending is profiled
	beforeEnd    func()
}

func (b *bench) parse(args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.root, "root", "..", "the root of the repository")
	flags.DurationVar(&b.duration, "duration", 3*time.Second, "how long each run is measured, after a second of warming up")
	flags.IntVar(&b.rounds, "rounds", 2, "how often everything is measured; the best of each counts, since others disturb")
	clients := flags.String("clients", "64,256", "concurrent clients of the services")
	pgbenchClients := flags.String("pgbench-clients", "16,64,256", "concurrent clients of pgbench")
	flags.IntVar(&b.batch, "batch", 100_000, "orders in a batch that is uploaded; 0 leaves batches out")
	flags.StringVar(&b.batchMemory, "batch-memory", "", "upload batches of these sizes as well and print the service's peak memory, as 100000,1000000")
	flags.IntVar(&b.maxConns, "max-conns", 16, "database connections of each service (database.maxConns)")
	flags.BoolVar(&b.idempotencyKey, "idempotency-key", false, "send an Idempotency-Key header beside the issuerRequestId")
	flags.StringVar(&b.only, "only", "", "only these of pgbench, accept, river, batch, roundtrips, intake, "+strings.Join(sendingParts, ", ")+" (comma separated)")
	flags.IntVar(&b.preload, "preload", 0, "instead, measure accepting (with -only intake: notifications) with empty tables and with so many orders stored; set -duration to more than a checkpoint cycle")
	flags.IntVar(&b.dispatch, "dispatch", 50_000, "orders that are sent in one run; the slow one sends two fifths of it, River's and the backlog's a fifth")
	flags.IntVar(&b.backlog, "backlog", 1_000_000, "orders in the long backlog")
	flags.IntVar(&b.singles, "singles", 200, "orders that are placed one by one while the service is idle")
	flags.DurationVar(&b.rest, "rest", 20*time.Second, "for how long the CPU time of an idle service is measured")
	riverWorkers := flags.String("river-workers", "16,256", "MaxWorkers of the River worker")
	flags.BoolVar(&b.statements, "statements", false, "also print which statements took PostgreSQL's time while orders were sent (needs pg_stat_statements)")
	flags.StringVar(&b.profile, "profile", "", "also write CPU and allocation profiles of the server to this folder")
	flags.BoolVar(&b.quick, "quick", false, "once and briefly, to see that it works: the figures mean little")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b.warm = time.Second
	if b.quick {
		b.rounds, b.batch, b.warm = 1, min(b.batch, 2000), 200*time.Millisecond
		*clients, *pgbenchClients, *riverWorkers = "64", "16", "16"
		b.dispatch, b.backlog, b.singles, b.rest = min(b.dispatch, 1000), min(b.backlog, 3000), min(b.singles, 20), min(b.rest, time.Second)
	}
	for _, list := range []struct {
		text string
		to   *[]int
	}{{*clients, &b.clients}, {*pgbenchClients, &b.pgbenchClients}, {*riverWorkers, &b.riverWorkers}} {
		var err error
		if *list.to, err = numbers(list.text); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return err
		}
	}
	return nil
}

func numbers(text string) ([]int, error) {
	var list []int
	for _, part := range strings.Split(text, ",") {
		var n int
		if _, err := fmt.Sscanf(part, "%d", &n); err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a list of numbers", text)
		}
		list = append(list, n)
	}
	return list, nil
}

func (b *bench) wants(part string) bool {
	return b.only == "" || slices.Contains(strings.Split(b.only, ","), part)
}

func (b *bench) form(svc *service) *form {
	return httpForm(svc.api, svc.token, b.idempotencyKey, b.site.encryption)
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "cardorder-bench-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w (logs are in %s)", err, b.dir)
			return
		}
		_ = os.RemoveAll(b.dir)
	}()
	if b.root, err = filepath.Abs(b.root); err != nil {
		return err
	}
	if b.site, err = newSite(ctx, b.dir, b.root, b.maxConns); err != nil {
		return err
	}
	if b.db, err = startDatabase(ctx, b.statements); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.db.stop(ctx)) }()
	if err := migrateRiver(ctx, b.db.url()); err != nil {
		return err
	}
	if err := b.db.findTables(ctx); err != nil {
		return err
	}
	if b.server, err = b.site.startService(ctx, "server", b.db.url()); err != nil {
		return err
	}
	defer func() { b.server.stop() }()
	if err := b.captureRows(ctx); err != nil {
		return err
	}
	b.pgbench, err = newPgbench(ctx, b.db, b.dir, b.rows)
	if errors.Is(err, errNoPgbench) { // as with npm's PostgreSQL
		b.printf("%v: nothing is compared with it\n", err)
	} else if err != nil {
		return err
	}
	if err := b.describe(ctx); err != nil {
		return err
	}
	if b.preload > 0 {
		return b.runPreloaded(ctx)
	}
	if b.wants("river") {
		if b.river, err = b.site.startRiver(ctx, b.db, b.rows); err != nil {
			return err
		}
		defer func() { b.river.stop() }()
	}
	if err := b.measureAll(ctx); err != nil {
		return err
	}
	b.report()
	if b.profile != "" {
		b.printf("profiles of the server are in %s (go tool pprof)\n", b.profile)
	}
	return nil
}

// captureRows places two orders: the first keeps the lane busy, so that the
// second stays as it was accepted; its rows are read back.
func (b *bench) captureRows(ctx context.Context) error {
	f := b.form(b.server)
	if _, err := b.server.place(ctx, f); err != nil {
		return err
	}
	short, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the first order was not claimed"))
	defer cancel()
	for claimed := false; !claimed; {
		if err := b.db.conn.QueryRow(short, `SELECT EXISTS (SELECT FROM outbox WHERE claim_token IS NOT NULL)`).Scan(&claimed); err != nil {
			return err
		}
		if err := pause(short, 5*time.Millisecond); err != nil {
			return err
		}
	}
	ids, err := b.server.place(ctx, f)
	if err != nil {
		return err
	}
	b.rows, err = b.db.capture(ctx, ids)
	return err
}

// measurement is one run.
type measurement func() (*result, error)

func (b *bench) measureAll(ctx context.Context) error {
	var all []measurement
	if b.wants("pgbench") && b.pgbench != nil {
		for _, pipeline := range []bool{false, true} {
			for _, n := range b.pgbenchClients {
				all = append(all, func() (*result, error) { return b.measurePgbench(ctx, n, pipeline, b.duration) })
			}
		}
	}
	if b.wants("accept") {
		for _, n := range b.clients {
			all = append(all, func() (*result, error) { return b.measureAccept(ctx, "accept", b.server, n, b.duration) })
		}
	}
	if b.wants("river") {
		for _, n := range b.clients {
			all = append(all, func() (*result, error) { return b.measureAccept(ctx, "River service", b.river, n, b.duration) })
		}
	}
	if b.wants("batch") && b.batch > 0 {
		for _, compressed := range []bool{false, true} {
			all = append(all, func() (*result, error) {
				r, _, err := b.measureBatch(ctx, b.server, b.batch, compressed)
				return r, err
			})
		}
	}
	if err := b.measureRounds(all); err != nil {
		return err
	}
	if err := b.measureIntake(ctx); err != nil {
		return err
	}
	if err := b.measureMemory(ctx); err != nil {
		return err
	}
	if b.profile != "" {
		if err := b.profileServer(ctx); err != nil {
			return err
		}
	}
	if b.wants("roundtrips") {
		var err error
		if b.trips, err = b.roundTrips(ctx, b.clients[0], min(b.duration, 2*time.Second)); err != nil {
			return err
		}
	}
	return b.measureSending(ctx)
}

// measureRounds runs everything several times and keeps the best of each.
func (b *bench) measureRounds(all []measurement) error {
	best := make([]*result, len(all))
	for round := range b.rounds {
		order := make([]int, len(all))
		for i := range order {
			order[i] = i
		}
		if round%2 == 1 {
			slices.Reverse(order) // whoever came first comes last
		}
		for _, i := range order {
			r, err := all[i]()
			if errors.Is(err, errNoBatches) {
				b.printf("batch: %v\n", err)
				continue
			}
			if err != nil {
				return err
			}
			b.progress(round, r)
			if best[i] == nil || r.rate > best[i].rate {
				best[i] = r
			}
		}
	}
	for _, r := range best {
		if r != nil {
			b.results = append(b.results, r)
		}
	}
	return nil
}

func (b *bench) measureMemory(ctx context.Context) error {
	if b.batchMemory == "" {
		return nil
	}
	sizes, err := numbers(b.batchMemory)
	if err != nil {
		return err
	}
	for _, n := range sizes {
		r, peak, err := b.measureBatch(ctx, b.server, n, false)
		if errors.Is(err, errNoBatches) {
			return nil
		}
		if err != nil {
			return err
		}
		b.progress(0, r)
		b.peaks = append(b.peaks, fmt.Sprintf("%d orders: %d MB", n, peak>>20))
	}
	return nil
}

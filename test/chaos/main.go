// Command chaos holds the service to its promise while everything around it, and it
// itself, breaks. Replicas of the service, a PostgreSQL and the simulator of D1 run as
// processes; core banking places orders without a break; and replicas are killed and
// frozen, PostgreSQL crashes, connections are cut and stalled, D1 loses answers, lies
// about what it did, is late and repeats itself. When all that is over and everything
// has settled, each order must have exactly one card, stand where its card stands, and
// have a timeline without a gap.
//
// What goes wrong when is chosen by a seed, so that a run can be repeated; how the
// processes are scheduled is not, so that the same seed may find something today and
// nothing tomorrow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// regressions are runs that once found something.
var regressions = []struct {
	options
	found string
}{}

// options is how a run is asked for.
type options struct {
	seed     uint64
	duration time.Duration
	replicas int
	rate     float64
	keep     bool
}

func (o options) String() string {
	return fmt.Sprintf("go run ./test/chaos -seed %d -duration %v -replicas %d -rate %v", o.seed, o.duration, o.replicas, o.rate)
}

// settleLimit is how long anything may still be under way after the faults: above the
// minute for which an upload of a dead replica is closed, and longer where there was
// time to leave more behind that D1 has to be asked about.
func (o options) settleLimit() time.Duration { return 2*time.Minute + 2*o.duration }

func main() {
	o := options{}
	flag.Uint64Var(&o.seed, "seed", 0, "chooses what goes wrong; 0: a random one")
	flag.DurationVar(&o.duration, "duration", time.Minute, "for how long things go wrong; settling comes on top")
	flag.IntVar(&o.replicas, "replicas", 2, "processes of the service, 1 to 4")
	flag.Float64Var(&o.rate, "rate", 20, "orders a second, batches not counted")
	flag.BoolVar(&o.keep, "keep", false, "keep logs and database also when all is well")
	again := flag.Bool("regressions", false, "make the runs that once found something, one after another")
	flag.Parse()
	if flag.NArg() > 0 || o.replicas < 1 || o.replicas > 4 || o.rate <= 0 || o.duration <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok := true
	if *again {
		say("%d runs once found something", len(regressions))
		for _, r := range regressions {
			say("once found: %s", r.found)
			ok = run(ctx, r.options) && ok
		}
	} else {
		for o.seed == 0 {
			o.seed = rand.Uint64N(1_000_000)
		}
		ok = run(ctx, o)
	}
	stop()
	if !ok {
		os.Exit(1)
	}
}

func say(format string, args ...any) {
	fmt.Printf("chaos: "+format+"\n", args...)
}

// random is a source of its own for each part of a run, so that what one part does
// changes nothing for the others.
func random(seed uint64, part string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(part))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// run is one run; it tells whether all was well.
func run(ctx context.Context, o options) bool {
	say("seed %d; to repeat it: %v", o.seed, o)
	dir, err := os.MkdirTemp("", "cardorder-chaos-")
	if err == nil {
		err = os.Chmod(dir, 0o711) // PostgreSQL may run as another user
	}
	v := &verdict{dir: dir, attention: make(map[string]int), changes: make(map[string]int)}
	if err == nil {
		err = try(ctx, o, v)
	}
	if err != nil {
		say("FAILED: %v", err)
	}
	if err == nil && v.lost+v.doubled+v.wrong == 0 {
		if o.keep {
			say("logs and the database are in %s", dir)
		} else {
			_ = os.RemoveAll(dir)
		}
		say("passed")
		return true
	}
	say("logs, the database and what is known of each order that is not right are in %s", dir)
	say("to repeat it: %v (the same faults at the same times; how processes are scheduled is not repeated)", o)
	return false
}

func try(ctx context.Context, o options, v *verdict) error {
	b := newBureau(random(o.seed, "bureau"))
	say("the bureau of this run: %v", b)
	c, err := startCluster(ctx, v.dir, o, b)
	if err != nil {
		return err
	}
	defer c.stop()
	fail := func(format string, args ...any) { v.add(&v.wrong, format, args...) }
	clients, err := c.callers(1)
	if err != nil {
		return err
	}
	l := &load{cluster: c, clients: clients, bureau: b, rate: o.rate, fail: fail, settleLimit: o.settleLimit()}

	// whole outlasts the faults: what was begun has to come to an end.
	whole, cancel := context.WithTimeout(ctx, o.duration+2*o.settleLimit()+2*time.Minute)
	defer cancel()
	breaking, stop := context.WithTimeout(whole, o.duration)
	defer stop()
	if _, err := c.management.PatchSettings(ctx, map[string]any{"faults": b.noise}); err != nil {
		return err
	}
	counts := &tally{counts: make(map[string]int)}
	var parts sync.WaitGroup
	parts.Go(func() { l.run(whole, o.seed, o.duration) })
	for i, t := range c.troubles(b, l, fail) {
		parts.Go(func() { t.make(breaking, random(o.seed, fmt.Sprintf("trouble %d", i)), counts) })
	}
	parts.Go(func() { l.progress(breaking) })
	parts.Wait()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}

	early, err := c.management.Cards(whole)
	if err != nil {
		return err
	}
	say("the faults are over, %d cards were ordered during them; waiting until all is settled", len(early))
	began := time.Now()
	if err := c.heal(whole, b); err != nil {
		return fmt.Errorf("healing: %w", err)
	}
	if err := c.settle(whole, l); err != nil {
		fail("%v", err)
	}
	say("settled in %v", time.Since(began).Round(100*time.Millisecond))
	if err := c.verify(whole, l, v); err != nil {
		return fmt.Errorf("looking at what came of it: %w", err)
	}
	noise, err := c.management.FaultCounts(whole)
	for name, n := range noise {
		counts.add("D1, now and then: "+string(name), n)
	}
	report(c, l, v, counts)
	return err
}

// progress says now and then how far the run is.
func (l *load) progress(ctx context.Context) {
	for sleep(ctx, 15*time.Second) {
		l.mu.Lock()
		orders, retries, waiting := len(l.orders), l.retries, l.waiting
		l.mu.Unlock()
		say("%d orders placed one by one, %d retries, %d callers wait for an answer", orders, retries, waiting)
	}
}

func report(c *cluster, l *load, v *verdict, counts *tally) {
	starts := 0
	for _, r := range c.replicas {
		starts += r.starts
	}
	say("%d orders, those of %d batches among them, %d cancelled; core banking repeated %d calls; %d starts of replicas",
		len(l.orders), len(l.batches), v.cancelled, l.retries, starts)
	sum := counts.each(func(name string, count int) { say("%5d  %s", count, name) })
	say("%d faults in all", sum)
	for _, name := range slices.Sorted(maps.Keys(v.changes)) {
		say("%5d  %s", v.changes[name], name)
	}
	var flags []string
	for name, n := range v.attention {
		flags = append(flags, fmt.Sprintf("%s %d", name, n))
	}
	if len(flags) > 0 {
		say("orders that call for a human: %s", strings.Join(flags, ", "))
	}
	say("lost %d, doubled %d, wrong %d", v.lost, v.doubled, v.wrong)
}

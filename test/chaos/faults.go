package main

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"cardorder/client"
	"cardorder/internal/d1sim"
	"cardorder/internal/netfault"
	"cardorder/internal/pgrun"
)

// fault is one kind of trouble: do makes it, lets it last, and ends it. Whatever it
// chooses comes from r, in the same order each time.
type fault struct {
	name string
	do   func(ctx context.Context, r *rand.Rand)
}

// trouble is faults of one place, of which there is one at a time; those of
// different places overlap as they come.
type trouble struct {
	gap    time.Duration // between them, on average
	faults []fault
}

// tally counts faults by kind.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) add(name string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[name] += n
}

func (t *tally) each(f func(name string, count int)) (sum int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(t.counts)) {
		f(name, t.counts[name])
		sum += t.counts[name]
	}
	return sum
}

// make makes trouble until ctx ends: all kinds in turn, in an order that the seed
// chooses, so that a run of a minute has some of each.
func (t trouble) make(ctx context.Context, r *rand.Rand, counts *tally) {
	var deck []fault
	for sleep(ctx, t.gap/2+time.Duration(r.Int64N(int64(t.gap)))) {
		if len(deck) == 0 {
			deck = slices.Clone(t.faults)
			r.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := deck[0]
		deck = deck[1:]
		counts.add(f.name, 1)
		f.do(ctx, r)
	}
}

// troubles is everything that goes wrong in a run: often enough that a minute has some of
// each kind, seldom enough that work gets done in between.
func (c *cluster) troubles(b bureau, l *load, fail func(string, ...any)) []trouble {
	list := []trouble{
		{6 * time.Second, c.replicaFaults(b, fail)},
		{15 * time.Second, c.databaseFaults(fail)},
		{6 * time.Second, networkFaults("database", func(r *replica) *netfault.Proxy { return r.toDatabase }, c.replicas, [2]time.Duration{time.Second, 4 * time.Second})},
		{6 * time.Second, networkFaults("D1", func(r *replica) *netfault.Proxy { return r.toD1 }, c.replicas, b.stall)},
		{4 * time.Second, networkFaults("core banking", func(r *replica) *netfault.Proxy { return r.toAPI }, c.replicas, [2]time.Duration{time.Second, 4 * time.Second})},
		{time.Second, c.answerFaults(b)},
		{6 * time.Second, c.bureauFaults(b)},
		{2 * time.Second, c.notificationFaults()},
	}
	if b.attended {
		list = append(list, trouble{4 * time.Second, operatorFaults(l, fail)})
	}
	return list
}

func (c *cluster) replicaFaults(b bureau, fail func(string, ...any)) []fault {
	one := func(r *rand.Rand) *replica { return c.replicas[r.IntN(len(c.replicas))] }
	kill := fault{"replica killed", func(_ context.Context, r *rand.Rand) {
		one(r).kill(between(r, [2]time.Duration{0, 2 * time.Second}))
	}}
	freeze := fault{"replica frozen", func(ctx context.Context, r *rand.Rand) {
		one(r).freeze(ctx, between(r, b.freeze))
	}}
	return []fault{kill, kill, freeze, freeze, {"all replicas killed", func(_ context.Context, r *rand.Rand) {
		for _, replica := range c.replicas {
			replica.kill(between(r, [2]time.Duration{0, time.Second}))
		}
	}}, {"rolling restart", func(ctx context.Context, _ *rand.Rand) {
		for _, replica := range c.replicas {
			if ended := replica.end(syscall.SIGTERM, 0); ended != nil {
				select {
				case <-ended:
				case <-time.After(drainLimit):
					fail("%s did not stop within %v of SIGTERM", replica.name, drainLimit)
					replica.kill(0)
				case <-ctx.Done():
					return
				}
			}
			_ = replica.awaitReady(ctx, 5*time.Second) // not while the database is away
		}
	}}}
}

// operatorFaults are what people do to a lane.
func operatorFaults(l *load, fail func(string, ...any)) []fault {
	resume := func(ctx context.Context, _ *rand.Rand) {
		if err := l.resume(ctx); err != nil && ctx.Err() == nil {
			fail("resuming the lane: %v", err)
		}
	}
	return []fault{{"lane resumed by hand", resume}, {"lane resumed by hand", resume}, {"lane paused", func(ctx context.Context, r *rand.Rand) {
		d := between(r, [2]time.Duration{500 * time.Millisecond, 2 * time.Second})
		err := l.insist(ctx, func(c *client.Client) error {
			_, err := c.PauseLane(ctx, client.LaneD1, "chaos")
			return err
		})
		if err != nil && ctx.Err() == nil {
			fail("pausing the lane: %v", err)
		}
		if sleep(ctx, d) { // the end of a run resumes it too
			resume(ctx, r)
		}
	}}}
}

func (c *cluster) databaseFaults(fail func(string, ...any)) []fault {
	restart := func(how pgrun.Shutdown) func(context.Context, *rand.Rand) {
		return func(ctx context.Context, r *rand.Rand) {
			if err := c.database.restart(ctx, how, between(r, [2]time.Duration{0, 1500 * time.Millisecond})); err != nil {
				fail("PostgreSQL could not be restarted: %v", err)
			}
		}
	}
	return []fault{{"PostgreSQL restarted", restart(pgrun.Fast)}, {"PostgreSQL crashed", restart(pgrun.Immediate)}}
}

// networkFaults are those of the connections between the replicas and somebody. Most
// hit one replica, some all of them.
func networkFaults(peer string, of func(*replica) *netfault.Proxy, replicas []*replica, long [2]time.Duration) []fault {
	broken := func(f netfault.Fault, limits [2]time.Duration, cut bool) func(context.Context, *rand.Rand) {
		return func(ctx context.Context, r *rand.Rand) {
			d := between(r, limits)
			hit := replicas
			if r.IntN(3) > 0 {
				first := r.IntN(len(replicas))
				hit = replicas[first : first+1]
			}
			for _, replica := range hit {
				_ = of(replica).Break(f)
			}
			if f != (netfault.Fault{}) {
				sleep(ctx, d)
			}
			for _, replica := range hit {
				if cut {
					of(replica).Cut()
				}
				_ = of(replica).Heal()
			}
			// What was held back arrives before anything is held back again.
			sleep(ctx, 200*time.Millisecond)
		}
	}
	short := [2]time.Duration{100 * time.Millisecond, 600 * time.Millisecond}
	cut := fault{"connections to " + peer + " cut", broken(netfault.Fault{}, short, true)}
	return []fault{
		cut, cut,
		{"connections to " + peer + " refused and cut", broken(netfault.Fault{Refuse: true}, short, true)},
		{"connections to " + peer + " delayed", broken(netfault.Fault{Delay: 60 * time.Millisecond}, [2]time.Duration{time.Second, 2 * time.Second}, false)},
		{"connections to " + peer + " stalled", broken(netfault.Fault{Stall: true}, long, false)},
		{"connections to " + peer + " stalled and cut", broken(netfault.Fault{Stall: true}, long, true)},
		{"answers of " + peer + " stalled and cut", broken(netfault.Fault{StallAnswers: true}, short, true)},
	}
}

// twoCards is the bureau's own fault, and the one that the service cannot prevent: it
// has to see it, unless D1 keeps quiet about it.
const twoCards = "two cards for one order"

// answerFaults are wrong answers of D1 to the next few requests.
func (c *cluster) answerFaults(b bureau) []fault {
	html := map[string]string{"Content-Type": "text/html"}
	tooSlow := d1sim.Duration(b.callTimeout + 500*time.Millisecond)
	soon := map[string]string{"Retry-After": "1"}
	var faults []fault
	add := func(name string, times int, sc d1sim.Script) {
		faults = append(faults, fault{"D1: " + name, func(ctx context.Context, r *rand.Rand) {
			sc := sc
			sc.Times = 1 + r.IntN(times)
			// What has not met anybody by now goes: an open breaker lets one call through
			// at a time, and one trouble would be all that a run has. Both fail only when
			// the run ends.
			_ = c.management.ClearScripts(ctx)
			_ = c.management.Script(ctx, sc)
		}})
	}
	answer := func(kind d1sim.Kind, status int, body string, headers map[string]string) d1sim.Script {
		return d1sim.Script{Kind: kind, Action: d1sim.ActionAnswer, Status: status, Body: body, Headers: headers}
	}
	const order, status, token = d1sim.KindProduction, d1sim.KindStatus, d1sim.KindToken

	add("order lost before it was accepted", 10, d1sim.Script{Kind: order, Action: d1sim.ActionLostBefore})
	add("answer lost after the order was accepted", 10, d1sim.Script{Kind: order, Action: d1sim.ActionLostAfter})
	add("500 after the order was accepted", 10, d1sim.Script{Kind: order, Action: d1sim.ActionErrorAfter})
	add("accepted without an operation id", 10, d1sim.Script{Kind: order, Action: d1sim.ActionNoOperationID})
	add("accepted, answered too late", 10, d1sim.Script{Kind: order, Action: d1sim.ActionDelay, Delay: tooSlow})
	after := func(status int, body string, headers map[string]string) d1sim.Script {
		return d1sim.Script{Kind: order, Action: d1sim.ActionAnswerAfter, Status: status, Body: body, Headers: headers}
	}
	add("502 with HTML after the order was accepted", 10, after(http.StatusBadGateway, "<html>bad gateway</html>", html))
	add("redirect after the order was accepted", 5, after(http.StatusSeeOther, "", map[string]string{"Location": "/"}))
	add("accepted, answer unreadable", 5, after(0, "<html>thank you</html>", html))
	add("accepted, answer drips", 3, d1sim.Script{Kind: order, Action: d1sim.ActionAnswerAfter, Drip: d1sim.Duration(b.callTimeout / 2)})
	add("accepted, answer of 10 MB", 2, d1sim.Script{Kind: order, Action: d1sim.ActionAnswerAfter, Size: 10 << 20})
	add("token ends before its time", 2, d1sim.Script{Kind: order, Action: d1sim.ActionRevoke})
	if b.ids && b.losing == 0 {
		add(twoCards, 2, d1sim.Script{Kind: order, Action: d1sim.ActionTwoOperations})
	}
	add("500 to an order", 10, answer(order, http.StatusInternalServerError, `{"errorCode":"X","error":"internal"}`, nil))
	add("502 with HTML to an order", 10, answer(order, http.StatusBadGateway, "<html>bad gateway</html>", html))
	add("503 to an order", 10, answer(order, http.StatusServiceUnavailable, "", soon))
	add("429 to an order", 10, answer(order, http.StatusTooManyRequests, "", soon))
	add("401 to an order", 4, answer(order, http.StatusUnauthorized, "", nil))
	add("408 to an order", 5, answer(order, http.StatusRequestTimeout, "", nil))
	add("redirect to an order", 5, answer(order, http.StatusTemporaryRedirect, "", map[string]string{"Location": "/"}))
	add("404 to an order", 3, answer(order, http.StatusNotFound, "", nil))
	add("403 to an order", 3, answer(order, http.StatusForbidden, "", nil))
	add("status request lost", 10, d1sim.Script{Kind: status, Action: d1sim.ActionLostBefore})
	add("status answer too late", 5, d1sim.Script{Kind: status, Action: d1sim.ActionDelay, Delay: tooSlow})
	add("500 to a status request", 10, answer(status, http.StatusInternalServerError, "", nil))
	add("429 to a status request", 5, answer(status, http.StatusTooManyRequests, "", map[string]string{"Retry-After": time.Now().Add(time.Second).UTC().Format(http.TimeFormat)}))
	add("status answer unreadable", 5, answer(status, http.StatusOK, "<html>welcome</html>", html))
	add("token request lost", 2, d1sim.Script{Kind: token, Action: d1sim.ActionLostAfter})
	add("500 to a token request", 2, answer(token, http.StatusInternalServerError, "", nil))
	return faults
}

// bureauFaults are times in which D1 behaves otherwise.
func (c *cluster) bureauFaults(b bureau) []fault {
	while := c.while(b)
	return []fault{
		{"D1: paused", while([2]time.Duration{300 * time.Millisecond, 2 * time.Second}, func(*rand.Rand) map[string]any { return map[string]any{"paused": true} })},
		{"D1: slow", while([2]time.Duration{time.Second, 3 * time.Second}, func(r *rand.Rand) map[string]any {
			return map[string]any{"answerDelay": between(r, [2]time.Duration{b.callTimeout / 2, 2 * b.callTimeout}).String()}
		})},
		{"D1: tokens expire after a second", while([2]time.Duration{3 * time.Second, 6 * time.Second}, func(*rand.Rand) map[string]any { return map[string]any{"tokenLifetime": "1s"} })},
		{"D1: all tokens end", func(ctx context.Context, _ *rand.Rand) { _ = c.management.RevokeTokens(ctx) }},
		{"D1: wrong URL", while([2]time.Duration{200 * time.Millisecond, 800 * time.Millisecond}, func(*rand.Rand) map[string]any { return map[string]any{"wrongUrl": true} })},
		{"D1: wrong key", while([2]time.Duration{200 * time.Millisecond, 800 * time.Millisecond}, func(*rand.Rand) map[string]any { return map[string]any{"wrongKey": true} })},
		{"D1: status lags", while([2]time.Duration{2 * time.Second, 4 * time.Second}, func(*rand.Rand) map[string]any { return map[string]any{"statusLag": b.lag.String()} })},
		{"D1: production stands still", while([2]time.Duration{time.Second, 3 * time.Second}, func(r *rand.Rand) map[string]any {
			return map[string]any{"stopAt": pick(r, d1sim.CardProdRequested, d1sim.CardProdReady, d1sim.CardProdDone)}
		})},
		{"D1: production fails", while([2]time.Duration{200 * time.Millisecond, 600 * time.Millisecond}, func(r *rand.Rand) map[string]any {
			return map[string]any{"failAt": map[string]any{
				"status":          pick(r, d1sim.DataException, d1sim.CardProdException),
				"operationStatus": pick(r, d1sim.OperationFailed, d1sim.OperationPending),
			}}
		})},
	}
}

// notificationFaults are what may happen to D1's word.
func (c *cluster) notificationFaults() []fault {
	long := [2]time.Duration{500 * time.Millisecond, 3 * time.Second}
	while := c.while(bureau{settings: map[string]any{"holdNotifications": false, "duplicateNotifications": false, "reverseNotifications": false}})
	set := func(names ...string) func(*rand.Rand) map[string]any {
		return func(*rand.Rand) map[string]any {
			patch := make(map[string]any)
			for _, name := range names {
				patch[name] = true
			}
			return patch
		}
	}
	network := func(f netfault.Fault, cut bool) func(context.Context, *rand.Rand) {
		return func(ctx context.Context, r *rand.Rand) {
			_ = c.fromD1.Break(f)
			sleep(ctx, between(r, [2]time.Duration{100 * time.Millisecond, time.Second}))
			if cut {
				c.fromD1.Cut()
			}
			_ = c.fromD1.Heal()
		}
	}
	return []fault{
		{"notifications late", while(long, set("holdNotifications"))},
		{"notifications twice", while(long, set("duplicateNotifications"))},
		{"notifications in reverse", while(long, set("reverseNotifications"))},
		{"notifications twice and in reverse", while(long, set("duplicateNotifications", "reverseNotifications"))},
		{"notification connections cut", network(netfault.Fault{}, true)},
		{"notification answers lost", network(netfault.Fault{StallAnswers: true}, true)},
		{"notification connections stalled", network(netfault.Fault{Stall: true}, false)},
	}
}

// while makes faults of settings that last for a while and then are again what they
// were.
func (c *cluster) while(b bureau) func([2]time.Duration, func(*rand.Rand) map[string]any) func(context.Context, *rand.Rand) {
	return func(limits [2]time.Duration, patch func(*rand.Rand) map[string]any) func(context.Context, *rand.Rand) {
		return func(ctx context.Context, r *rand.Rand) {
			changes, before := patch(r), make(map[string]any)
			for name := range changes {
				before[name] = b.settings[name]
			}
			_, _ = c.management.PatchSettings(ctx, changes)
			sleep(ctx, between(r, limits))
			_, _ = c.management.PatchSettings(context.WithoutCancel(ctx), before)
		}
	}
}

package outbox

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/order"
	"cardorder/internal/pgtest"
	"cardorder/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m, store.Migrate)) }

const (
	bank     = "ISSUER0001"
	neighbor = "ISSUER0002"
	patience = time.Minute
)

// world is a database, the simulator and any number of processes.
type world struct {
	t         *testing.T
	url       string
	sealer    *store.Sealer
	store     *store.Store // the test's own
	conn      *pgx.Conn
	sim       *d1sim.Sim
	d1        string // URL
	signing   *ecdsa.PrivateKey
	encrypter *d1client.Encrypter
	limits    *order.Limits // of every order

	mu    sync.Mutex
	gates map[string]chan struct{} // by issuer: orders wait until it is closed
	open  map[string]int           // orders being answered, by issuer
	most  map[string]int           // the most of them at once
}

func newWorld(t *testing.T, settings d1sim.Settings) *world {
	t.Helper()
	w := &world{t: t, url: pgtest.New(t), gates: make(map[string]chan struct{}), open: make(map[string]int), most: make(map[string]int)}
	keyset, err := store.NewSealingKeyset()
	w.must(err)
	w.sealer, err = store.NewSealer(keyset)
	w.must(err)
	w.store = w.openStore()
	w.conn, err = pgx.Connect(t.Context(), w.url)
	w.must(err)
	t.Cleanup(func() { _ = w.conn.Close(context.Background()) })

	w.signing, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	keys := map[string]*ecdsa.PublicKey{"signing": &w.signing.PublicKey}
	w.sim, err = d1sim.New(d1sim.Config{
		Issuers:  []d1sim.Issuer{{ID: bank, SigningKeys: keys}, {ID: neighbor, SigningKeys: keys}},
		Settings: settings,
	})
	w.must(err)
	key, err := json.Marshal(w.sim.EncryptionKey())
	w.must(err)
	encryptionKey, err := d1client.ParsePublicJWK(key)
	w.must(err)
	w.encrypter, err = d1client.NewEncrypter(encryptionKey)
	w.must(err)
	server := httptest.NewServer(w.gated(w.sim.Handler()))
	t.Cleanup(server.Close)
	w.d1 = server.URL
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) openStore() *store.Store {
	w.t.Helper()
	st, err := store.Open(w.t.Context(), store.Config{
		URL: w.url, MaxConns: 8, Seal: w.sealer, HashKeys: store.HashKeys{Current: make([]byte, 32)},
		Limits: func(string, string) *order.Limits { return w.limits },
	})
	w.must(err)
	w.t.Cleanup(st.Close)
	return st
}

// gated counts the orders that are being answered, and keeps them waiting at a gate.
func (w *world) gated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		issuer := ""
		if r.Method == http.MethodPost && strings.Contains(r.URL.Path, "production") {
			issuer = strings.Split(strings.Split(r.URL.Path, "/issuers/")[1], "/")[0]
		}
		if issuer == "" {
			next.ServeHTTP(rw, r)
			return
		}
		w.mu.Lock()
		gate := w.gates[issuer]
		w.open[issuer]++
		w.most[issuer] = max(w.most[issuer], w.open[issuer])
		w.mu.Unlock()
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.open[issuer]--
		}()
		if gate != nil {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(rw, r)
	})
}

// shut closes the gate of an issuer; the returned function opens it for good.
func (w *world) shut(issuer string) (open func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gate := make(chan struct{})
	w.gates[issuer] = gate
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.gates, issuer)
		close(gate)
	})
}

func (w *world) openCalls(issuer string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open[issuer]
}

// process is one replica.
type process struct {
	*Fleet
	registry *prometheus.Registry
	stop     func() // drains it; twice does no harm
}

const beat = 20 * time.Millisecond

// start starts a process. configure may change the lanes and the fleet.
func (w *world) start(configure ...func(*Fleet, *Config)) *process {
	w.t.Helper()
	st := w.openStore()
	registry := prometheus.NewRegistry()
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil))
	fleet, err := NewFleet(FleetConfig{Host: "test", Beat: beat, Log: log}, st, NewMetrics(registry, []string{bank, neighbor}))
	w.must(err)
	for _, issuer := range []string{bank, neighbor} {
		client, err := d1client.New(d1client.Config{
			IssuerID: issuer, BaseURL: w.d1 + "/banking/v1", TokenURL: w.d1 + "/authz/v1/oauth2/token", AllowHTTP: true,
			SigningKey: w.signing, SigningKeyID: "signing",
		})
		w.must(err)
		w.t.Cleanup(client.Close)
		cfg := Config{
			// No call, and no claim, ends by its time while a test waits.
			IssuerID: issuer, Concurrency: 4, CallTimeout: 3 * patience, Poll: 20 * time.Millisecond, Log: log,
			Policy: Policy{ResendAfter: 300 * time.Millisecond, Retry404For: time.Millisecond},
		}
		for _, c := range configure {
			c(fleet, &cfg)
		}
		fleet.Add(cfg, client)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		fleet.Run(ctx)
	}()
	p := &process{Fleet: fleet, registry: registry, stop: func() { cancel(); <-ended }}
	w.t.Cleanup(p.stop)
	return p
}

// attempts is how many calls of a process ended for a reason.
func (p *process) attempts(kind store.AttemptKind, reason d1client.Reason) int {
	return int(testutil.ToFloat64(p.metrics.attempts.WithLabelValues(bank, string(kind), string(reason))))
}

// accept accepts orders with issuerRequestIds from a prefix.
func (w *world) accept(issuer, prefix string, n int) {
	w.t.Helper()
	jwe, err := w.encrypter.Encrypt(time.Now(), []byte(`{"pan":"4111111111111111","exp":"3012"}`))
	w.must(err)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprintf("%s-%03d", prefix, i)
			_, err := w.store.Accept(w.t.Context(), store.Acceptance{IssuerID: issuer, Client: "test", Request: &order.Request{
				CardID: id, Canonical: []byte(id), EndsAt: order.Shipped,
				Production: order.Production{
					ConsumerID: "consumer", CardProductID: "gold", IssuerRequestID: id, Channel: order.ChannelThales, EncryptedData: jwe,
					Services:           order.Services{Issuance: order.IssuanceCreation, Delivery: "POST"},
					PaymentApplication: &order.PaymentApplication{Config: "visa", ODAKeyIndex: "1", DerivationKeyIndex: "1"},
					Shipment: &order.Shipment{Type: order.ShipmentIndividual, DeliveryAddress: &order.Address{
						FirstName: "Ada", LastName: "Example", Line1: "1 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR",
					}},
				},
			}})
			if err != nil {
				w.t.Error(err)
			}
		})
	}
	wg.Wait()
}

func query[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.conn.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.conn.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// eventually waits until f is true.
func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !f() {
		select {
		case <-again.C:
		case <-deadline.C:
			w.t.Fatalf("did not happen: %s", what)
		}
	}
}

// submitted waits until so many orders of an issuer have reached D1.
func (w *world) submitted(issuer string, n int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d orders of %s are at D1", n, issuer), func() bool {
		return query[int](w, `SELECT count(*) FROM order_state WHERE issuer_id = $1 AND status = 'SUBMITTED'`, issuer) == n
	})
}

// onceEach checks that every order of an issuer was sent once and made one card.
func (w *world) onceEach(issuer string, n int) {
	w.t.Helper()
	sent := make(map[string]int)
	for _, r := range w.sim.History(d1sim.Filter{Kind: d1sim.KindProduction}) {
		if r.IssuerID == issuer {
			sent[r.IssuerRequestID]++
		}
	}
	for id, times := range sent {
		if times != 1 {
			w.t.Errorf("%s was sent %d times", id, times)
		}
	}
	if cards := len(w.sim.CardsOf(issuer)); len(sent) != n || cards != n {
		w.t.Errorf("%d orders were sent, %d cards made, want %d", len(sent), cards, n)
	}
}

func single(c *Config) { c.Concurrency = 1 }

// Any number of processes bring each order once, and never have more calls open
// together than the lane may have. Clocks that are wrong by minutes change nothing.
func TestReplicas(t *testing.T) {
	t.Parallel()
	const n = 200
	w := newWorld(t, d1sim.Settings{AnswerDelay: d1sim.Duration(3 * time.Millisecond), Repeat: d1sim.RepeatSecondCard})
	var processes []*process
	for i := range 3 {
		skew := time.Duration(i-1) * 5 * time.Minute
		processes = append(processes, w.start(func(f *Fleet, _ *Config) {
			f.now = func() time.Time { return time.Now().Add(skew) }
		}))
	}
	w.eventually("all have their share", func() bool {
		sum := 0
		for _, p := range processes {
			sum += int(testutil.ToFloat64(p.metrics.share.WithLabelValues(bank)))
		}
		return sum == 4 && processes[0].live.Load() == 3
	})
	open := w.shut(bank)
	defer open()
	w.accept(bank, "order", n)
	w.eventually("all of them send, as many at once as they may", func() bool { return w.openCalls(bank) == 4 })
	open()
	w.submitted(bank, n)
	w.onceEach(bank, n)
	if most := w.most[bank]; most > 4 {
		t.Errorf("%d calls were open at once, want 4 at most", most)
	}
	for i, p := range processes {
		if sent := p.attempts(store.AttemptSubmit, d1client.ReasonAccepted); sent == 0 {
			t.Errorf("process %d sent nothing", i)
		}
	}
	replicas, err := w.store.Replicas(t.Context())
	w.must(err)
	if len(replicas) != 3 {
		t.Fatalf("%d replicas", len(replicas))
	}
	for _, r := range replicas {
		var h Health
		w.must(json.Unmarshal(r.Health[store.LaneOf(bank)], &h))
		for i, p := range processes {
			if want := -int64(i-1) * 300_000; p.id == r.ID && (h.ClockSkewMs < want-60_000 || h.ClockSkewMs > want+60_000) {
				t.Errorf("process %d: clock skew %d ms, want about %d", i, h.ClockSkewMs, want)
			}
		}
	}
	for _, p := range processes {
		p.stop()
	}
	if left, err := w.store.Replicas(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%d replicas are left: %v", len(left), err)
	}
}

// A process that ends is off the list, whatever it was just saying: what is left of it
// would keep its share of the limits from the others for seconds.
func TestDepart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	for range 300 {
		fleet, err := NewFleet(FleetConfig{Beat: 200 * time.Microsecond, Log: slog.New(slog.DiscardHandler)}, w.store, NewMetrics(prometheus.NewRegistry(), nil))
		w.must(err)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { fleet.Run(ctx) })
		w.eventually("it is on the list", func() bool { return fleet.live.Load() > 0 })
		cancel()
		running.Wait()
	}
	if left, err := w.store.Replicas(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%d replicas are left: %v", len(left), err)
	}
}

// A process that stops finishes its calls and gives back what it had claimed ahead, as
// if it had never been claimed.
func TestStopGivesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{Repeat: d1sim.RepeatSecondCard})
	open := w.shut(bank)
	defer open()
	w.accept(bank, "order", 20)
	p := w.start()
	w.eventually("calls are open, and more is claimed", func() bool {
		return w.openCalls(bank) == 4 && query[int](w, `SELECT count(*) FROM outbox WHERE claim_token IS NOT NULL`) > 4
	})
	stopped := make(chan struct{})
	go func() { p.stop(); close(stopped) }()
	w.eventually("the rest is given back while the calls are open", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox WHERE claim_token IS NOT NULL`) == 4
	})
	open()
	<-stopped
	w.onceEach(bank, 4)
	if n := query[int](w, `SELECT count(*) FROM outbox WHERE claim_token IS NULL AND first_sent_at IS NULL AND maybe_sent_at IS NULL AND tries = 0`); n != 16 {
		t.Errorf("%d messages are as they were, want 16", n)
	}
	w.start()
	w.submitted(bank, 20)
	w.onceEach(bank, 20)
}

// A single order goes before batch orders, also before those that are claimed already.
func TestSinglesFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	open := w.shut(bank)
	defer open()
	w.accept(bank, "batch", 30)
	w.exec(`UPDATE outbox SET class = $1`, store.ClassBatch)
	p := w.start(func(_ *Fleet, c *Config) { single(c) })
	w.eventually("one call is open", func() bool { return w.openCalls(bank) == 1 })
	w.accept(bank, "single", 1)
	p.Wake(store.LaneOf(bank))
	l := p.lanes[store.LaneOf(bank)]
	w.eventually("the single one is claimed, and has arrived", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.queue.waiting(store.ClassSingle) == 1
	})
	open()
	w.submitted(bank, 31)
	if second := w.sim.History(d1sim.Filter{Kind: d1sim.KindProduction})[1]; second.IssuerRequestID != "single-000" {
		t.Errorf("after the call that was open came %s", second.IssuerRequestID)
	}
	w.onceEach(bank, 31)
}

// An issuer whose D1 hangs keeps nobody else waiting.
func TestSlowIssuerSlowsNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	open := w.shut(bank)
	defer open()
	w.accept(bank, "slow", 20)
	w.start()
	w.eventually("all calls of the slow one are open", func() bool { return w.openCalls(bank) == 4 })
	w.accept(neighbor, "quick", 50)
	w.submitted(neighbor, 50)
	w.onceEach(neighbor, 50)
	if n := w.openCalls(bank); n != 4 {
		t.Errorf("%d calls of the slow one are open", n)
	}
	open()
	w.submitted(bank, 20)
	w.onceEach(bank, 20)
}

// A message whose worker died is taken over when its lease ends: D1 is asked before
// anything is sent.
func TestTakeover(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{Repeat: d1sim.RepeatSecondCard, UnknownCard: d1sim.UnknownCardEmpty})
	w.accept(bank, "order", 1)
	dead, err := w.store.Claim(t.Context(), store.ClaimRequest{Lane: store.LaneOf(bank), Class: store.ClassSingle, Limit: 1, Lease: 200 * time.Millisecond})
	w.must(err)
	if len(dead) != 1 {
		t.Fatalf("claimed %d", len(dead))
	}
	p := w.start()
	w.submitted(bank, 1)
	w.onceEach(bank, 1)
	if asked := p.attempts(store.AttemptAsk, d1client.ReasonFound); asked < 2 {
		t.Errorf("it was asked about %d times before it was sent", asked)
	}
	if n := testutil.ToFloat64(p.metrics.rescued.WithLabelValues(bank)); n != 1 {
		t.Errorf("%v leases were rescued", n)
	}
}

// While D1 is down nothing is claimed but a try now and then, nothing counts against an
// order, and everything goes out when D1 is back.
func TestBreakerSparesD1(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	w.must(w.sim.Script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 500, Times: 1000}))
	w.accept(bank, "order", 60)
	begun := time.Now()
	p := w.start(func(_ *Fleet, c *Config) { c.Policy.ResendAfter = 50 * time.Millisecond })
	w.eventually("the breaker is open", func() bool {
		p.lanes[store.LaneOf(bank)].mu.Lock()
		defer p.lanes[store.LaneOf(bank)].mu.Unlock()
		return p.lanes[store.LaneOf(bank)].sending.state == breakerOpen
	})
	w.eventually("what was claimed ahead is given back", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox WHERE claim_token IS NOT NULL AND class <> $1`, store.ClassQuestion) == 0
	})
	// Five in a row, and those that were open beside the fifth; a try or two later, and
	// one more after each wait that there was time for.
	most := 10
	for wait, passed := breakerFirstWait/2, time.Since(begun); passed > wait; wait *= 2 {
		most, passed = most+1, passed-wait
	}
	if n := p.attempts(store.AttemptSubmit, d1client.ReasonServerError); n < 5 || n > most {
		t.Errorf("%d calls were made to a D1 that is down", n)
	}
	w.sim.ClearScripts()
	_, err := w.store.ResumeLane(t.Context(), store.LaneOf(bank), "test")
	w.must(err)
	w.submitted(bank, 60)
	if n := len(w.sim.CardsOf(bank)); n != 60 {
		t.Errorf("%d cards", n)
	}
}

// Nobody gets a token: the breaker opens at the first call, no order is touched, and
// all goes on by itself.
func TestNoToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	w.must(w.sim.Script(d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionAnswer, Status: 401, Times: 1}))
	w.accept(bank, "order", 20)
	p := w.start(func(_ *Fleet, c *Config) { single(c) })
	w.submitted(bank, 20)
	w.onceEach(bank, 20)
	if n := p.attempts(store.AttemptSubmit, d1client.ReasonTokenRefused); n != 1 {
		t.Errorf("%d orders found out that there is no token", n)
	}
}

// A pause holds what is not sent yet, and gives it back; a resume lets it go.
func TestPause(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	open := w.shut(bank)
	defer open()
	w.accept(bank, "order", 20)
	p := w.start(func(_ *Fleet, c *Config) { single(c) })
	w.eventually("a call is open", func() bool { return w.openCalls(bank) == 1 })
	_, err := w.store.PauseLane(t.Context(), store.LaneOf(bank), "test", "a reason")
	w.must(err)
	w.eventually("the lane has heard of it", func() bool {
		l := p.lanes[store.LaneOf(bank)]
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.paused
	})
	w.eventually("the rest is given back", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox WHERE claim_token IS NOT NULL`) == 1
	})
	open()
	w.submitted(bank, 1)
	w.onceEach(bank, 1)
	_, err = w.store.ResumeLane(t.Context(), store.LaneOf(bank), "test")
	w.must(err)
	w.submitted(bank, 20)
	w.onceEach(bank, 20)
}

// A D1 that refuses every order as if the path were wrong stops the lane: orders are
// tried one by one, and when one is accepted all go out and none is rejected.
func TestStopAndProbes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	w.must(w.sim.Script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 404, Times: 1000}))
	w.accept(bank, "order", 30)
	p := w.start()
	w.eventually("the lane is stopped and an order was tried", func() bool {
		return testutil.ToFloat64(p.metrics.probes.WithLabelValues(bank)) > 0
	})
	w.sim.ClearScripts()
	_, err := w.store.ResumeLane(t.Context(), store.LaneOf(bank), "test")
	w.must(err)
	w.submitted(bank, 30)
	if n := len(w.sim.CardsOf(bank)); n != 30 {
		t.Errorf("%d cards", n)
	}
}

// D1 is asked for the operation of an order that it took without naming one.
func TestOperationIsAskedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	w.must(w.sim.Script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionNoOperationID}))
	w.accept(bank, "order", 1)
	w.start()
	w.submitted(bank, 1)
	w.exec(`UPDATE order_state SET next_check_at = now()`)
	w.eventually("the order has its operation", func() bool {
		return query[bool](w, `SELECT operation_id IS NOT NULL FROM order_state`)
	})
	w.eventually("nothing is left to ask", func() bool { return query[int](w, `SELECT count(*) FROM outbox`) == 0 })
}

// The rate of all replicas together stays within its limit.
func TestRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, d1sim.Settings{})
	limited := func(_ *Fleet, c *Config) { c.RatePerSecond = 40 }
	processes := []*process{w.start(limited), w.start(limited)}
	w.eventually("both know of each other", func() bool {
		for _, p := range processes {
			l := p.lanes[store.LaneOf(bank)]
			l.mu.Lock()
			known := l.limiter != nil && l.limiter.Limit() == 20
			l.mu.Unlock()
			if !known {
				return false
			}
		}
		return true
	})
	w.accept(bank, "order", 30)
	w.submitted(bank, 30)
	w.onceEach(bank, 30)
	history := w.sim.History(d1sim.Filter{Kind: d1sim.KindProduction})
	took := history[len(history)-1].Time.Sub(history[0].Time)
	// At full speed these are some milliseconds; the bursts go out at once.
	if least := time.Second / 40 * (30 - 2*4 - 1); took < least {
		t.Errorf("30 orders went out within %v, want %v at least", took, least)
	}
}

// A person's look at a process that knows no lane yet does not fail.
func TestShareBeforeTheFirstBeat(t *testing.T) {
	t.Parallel()
	l := newLane(Config{IssuerID: bank, Log: slog.New(slog.DiscardHandler)}, nil, nil, NewMetrics(prometheus.NewRegistry(), nil))
	if c, _ := l.plan(time.Now()); c.limit != 0 {
		t.Errorf("claims %+v before it has a share", c)
	}
	if h := l.health(time.Now(), time.Now()); h.Concurrency != 0 || h.Sending.State != "closed" {
		t.Errorf("health %+v", h)
	}
}

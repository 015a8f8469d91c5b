package app_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/netfault"
	"cardorder/internal/pgrun"
)

// durable are the settings of a server whose end loses no commit, and that can be
// copied.
var durable = map[string]string{"synchronous_commit": "on", "wal_level": "replica", "max_wal_senders": "4"}

// startPostgres runs a server for one test alone, which may do to it what it likes.
func startPostgres(t *testing.T, cfg pgrun.Config) *pgrun.Server {
	t.Helper()
	if cfg.Settings == nil {
		cfg.Settings = durable
	}
	pg, err := pgrun.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	return pg
}

// unforgivingAndEmpty proves with one answer that a card is not there, so that an
// order that was claimed when the database went can be sent again soon.
func unforgivingAndEmpty() d1sim.Settings {
	s := unforgiving()
	s.UnknownCard = d1sim.UnknownCardEmpty
	return s
}

// load is core banking that places orders without pause and repeats what it got no
// answer to, as it should.
type load struct {
	b      *bank
	placed atomic.Int64
	end    chan struct{}
	wg     sync.WaitGroup

	mu  sync.Mutex
	ids []string
}

func (b *bank) load() *load {
	b.t.Helper()
	c, err := client.New(client.Config{
		BaseURL: b.env.Ready.APIURL, IssuerID: b.env.Ready.IssuerID, Token: client.NewToken(b.env.Ready.Token),
		MaxAttempts: 1000, Backoff: 10 * time.Millisecond, MaxWait: 200 * time.Millisecond,
		HTTPClient: &http.Client{Transport: contract{b.t}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	l := &load{b: b, end: make(chan struct{})}
	var next atomic.Int64
	orders := make([]*client.NewOrder, 4)
	for i := range orders {
		orders[i] = b.newOrder("")
	}
	for _, o := range orders {
		l.wg.Go(func() {
			for {
				select {
				case <-l.end:
					return
				case <-time.After(5 * time.Millisecond): // a rate, so that the numbers stay small
				}
				n := next.Add(1)
				o.CardID, o.IssuerRequestID = fmt.Sprintf("card-%d", n), fmt.Sprintf("request-%d", n)
				ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
				placed, err := c.PlaceOrder(ctx, o, "")
				cancel()
				if err != nil {
					b.t.Errorf("order %d: %v", n, err)
					return
				}
				l.mu.Lock()
				l.ids = append(l.ids, placed.ID)
				l.mu.Unlock()
				l.placed.Add(1)
			}
		})
	}
	b.t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	select {
	case <-l.end:
	default:
		close(l.end)
	}
	l.wg.Wait()
}

// more waits until so many further orders got their 201.
func (l *load) more(n int64) {
	l.b.t.Helper()
	goal := l.placed.Load() + n
	l.b.eventually(fmt.Sprintf("%d further orders are placed", n), func() bool { return l.placed.Load() >= goal })
}

// settled ends the load and checks every order that got its 201: it exists and has
// arrived, one card was made for it, its timeline has no gap, and of every card there
// is the answer by which D1 took it.
func (l *load) settled() {
	l.b.t.Helper()
	l.stop()
	b := l.b
	n := len(l.ids)
	if stored := query[int](b, `SELECT count(*) FROM orders WHERE id = ANY($1)`, l.ids); stored != n {
		b.t.Errorf("%d orders got their 201, and %d of them are stored", n, stored)
	}
	var open []string
	defer func() {
		if len(open) > 0 {
			b.t.Logf("%d of %d orders are not shipped: %q", len(open), n, open)
		}
	}()
	b.eventually("all orders are shipped", func() bool {
		open = query[[]string](b, `
			SELECT coalesce(array_agg(concat_ws(' ', s.order_id, s.status, s.version, m.tries, m.asks, m.negatives, m.run_at - now(), m.claim_token)), '{}')
			FROM order_state s LEFT JOIN outbox m USING (issuer_id, order_id) WHERE s.status <> 'SHIPPED'`)
		return len(open) == 0
	})
	b.madeOnce()
	b.t.Logf("%d orders", n)
}

// madeOnce checks all orders that there are, which have arrived.
func (b *bank) madeOnce() {
	b.t.Helper()
	counts, err := b.env.Management.CardCounts(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	orders := query[[]string](b, `SELECT coalesce(array_agg(issuer_request_id), '{}') FROM orders`)
	if len(counts) != len(orders) {
		b.t.Errorf("cards of %d orders were made, want %d", len(counts), len(orders))
	}
	for _, id := range orders {
		if counts[id] != 1 {
			b.t.Errorf("%d cards were made for %s, want 1", counts[id], id)
		}
	}
	gaps := query[[]string](b, `
		SELECT coalesce(array_agg(s.order_id::text), '{}') FROM order_state s
		WHERE NOT EXISTS (SELECT FROM order_events e WHERE e.issuer_id = s.issuer_id AND e.order_id = s.order_id
			HAVING count(*) = s.version AND max(e.seq) = s.version AND (array_agg(e.status ORDER BY e.seq DESC))[1] = s.status)`)
	if len(gaps) > 0 {
		b.t.Errorf("the timelines of %d orders have gaps: %v", len(gaps), gaps)
	}
	if left := query[int](b, `SELECT count(*) FROM outbox`); left > 0 {
		b.t.Errorf("%d messages are left", left)
	}
	if strings.Contains(b.metrics(), `status="500"`) {
		b.t.Error("trouble with the database was answered with a 500")
	}
}

// everyAnswerKept checks that what D1 answered was stored, however the database was
// doing: an answer that is lost is found out by asking, later.
func (b *bank) everyAnswerKept() {
	b.t.Helper()
	lost := query[int](b, `
		SELECT count(*) FROM orders o WHERE NOT EXISTS (SELECT FROM attempts a
			WHERE a.issuer_id = o.issuer_id AND a.order_id = o.id AND a.kind = 'submit' AND a.outcome = 'taken')`)
	if lost > 0 {
		b.t.Errorf("the answers of D1 to %d orders were lost", lost)
	}
}

// readyz returns the status of the admin listener's /readyz, and why.
func (b *bank) readyz() (int, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, strings.TrimSuffix(b.env.Ready.MetricsURL, "/metrics")+"/readyz", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// notReady waits until /readyz says that the service cannot work, and why.
func (b *bank) notReady(why ...string) {
	b.t.Helper()
	var status int
	var text string
	b.eventually("/readyz tells", func() bool {
		status, text = b.readyz()
		return status == http.StatusServiceUnavailable
	})
	for _, part := range why {
		if strings.Contains(text, part) {
			return
		}
	}
	b.t.Errorf("/readyz says %q, want one of %q", text, why)
}

func (b *bank) ready() {
	b.t.Helper()
	b.eventually("/readyz says ok", func() bool {
		status, _ := b.readyz()
		return status == http.StatusOK
	})
}

// through leads the service to its database by another way than the test takes.
func through(address string) func(*config.Config) {
	return func(cfg *config.Config) {
		u, err := url.Parse(cfg.Database.URL.Reveal())
		if err != nil {
			panic(err) // the test's own URL
		}
		u.Host = address
		cfg.Database.URL = config.NewSecret(u.String())
	}
}

// startProxy puts a network that can break before a database server.
func startProxy(t *testing.T, pg *pgrun.Server) *netfault.Proxy {
	t.Helper()
	p, err := netfault.Listen(fmt.Sprintf("127.0.0.1:%d", pg.Port()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func breakNetwork(t *testing.T, p *netfault.Proxy, f netfault.Fault) {
	t.Helper()
	if err := p.Break(f); err != nil {
		t.Fatal(err)
	}
}

// A server that is restarted under load, orderly or as by a crash, loses and doubles
// nothing, and nobody has to do anything about it.
func TestPostgresRestart(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]pgrun.Shutdown{"fast": pgrun.Fast, "immediate": pgrun.Immediate} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pg := startPostgres(t, pgrun.Config{})
			b := newBankOn(t, pg.URL(""), unforgivingAndEmpty())
			l := b.load()
			l.more(20)
			for range 3 {
				if err := pg.Restart(t.Context(), how); err != nil {
					t.Fatal(err)
				}
				l.more(20)
			}
			if err := pg.Halt(how); err != nil {
				t.Fatal(err)
			}
			b.notReady("connect")
			if err := pg.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.ready()
			l.more(20)
			l.settled()
			b.everyAnswerKept()
		})
	}
}

// Connections that are cut at any moment, also between a commit and its answer.
func TestPostgresConnectionsCut(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, pgrun.Config{})
	proxy := startProxy(t, pg)
	b := newBankOn(t, pg.URL(""), unforgivingAndEmpty(), through(proxy.Addr()))
	l := b.load()
	l.more(20)
	for range 10 {
		proxy.Cut()
		l.more(5)
	}
	for range 5 {
		// Statements arrive and are carried out; their answers are lost.
		breakNetwork(t, proxy, netfault.Fault{StallAnswers: true})
		b.eventually("something waits for an answer", func() bool {
			return query[int](b, `SELECT count(*) FROM pg_stat_activity
				WHERE application_name = 'cardorder' AND state LIKE 'idle%' AND state_change > now() - interval '50 ms'`) > 0
		})
		proxy.Cut()
		breakNetwork(t, proxy, netfault.Fault{})
		l.more(5)
	}
	breakNetwork(t, proxy, netfault.Fault{Refuse: true})
	proxy.Cut()
	b.notReady("connection refused", "connection reset")
	breakNetwork(t, proxy, netfault.Fault{Delay: 5 * time.Millisecond})
	b.ready()
	l.more(20)
	breakNetwork(t, proxy, netfault.Fault{})
	l.settled()
	b.everyAnswerKept()
}

// A network that swallows everything: nothing is refused, nothing answers. Nobody
// waits for ever, and it goes on where it was.
func TestPostgresStalls(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, pgrun.Config{})
	proxy := startProxy(t, pg)
	b := newBankOn(t, pg.URL(""), unforgivingAndEmpty(), through(proxy.Addr()))
	l := b.load()
	l.more(20)
	breakNetwork(t, proxy, netfault.Fault{Stall: true})
	b.notReady("timeout", "deadline")
	breakNetwork(t, proxy, netfault.Fault{})
	b.ready()
	l.more(20)
	l.settled()
	b.everyAnswerKept()
}

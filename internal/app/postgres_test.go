package app_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/client"
	"cardorder/internal/app"
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
	s.MaxPerCall = 100
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
	orders := make([]*client.NewOrder, 3)
	for i := range orders {
		orders[i] = b.newOrder("")
	}
	for _, o := range orders {
		l.wg.Go(func() {
			for {
				select {
				case <-l.end:
					return
				case <-time.After(60 * time.Millisecond): // a rate, so that the numbers stay small
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
	b.within(5*patience, "all orders are shipped", func() bool {
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
	b.nothingLeft()
	if strings.Contains(b.metrics(), `status="500"`) {
		b.t.Error("trouble with the database was answered with a 500")
	}
}

// everyAnswerKept checks that what came of every call to D1 was stored, however the
// database was doing: an answer that is lost is found out by asking, later. On a busy
// machine an answer may come too late; then that is stored.
func (b *bank) everyAnswerKept() {
	b.t.Helper()
	b.eventually("every answer of D1 is stored", func() bool {
		return query[int](b, `
			SELECT count(*) FROM orders o WHERE NOT EXISTS (SELECT FROM attempts a
				WHERE a.issuer_id = o.issuer_id AND a.order_id = o.id AND a.kind = 'submit' AND a.outcome IN ('taken', 'unknown'))`) == 0
	})
}

// readyz returns the status of the admin listener's /readyz, and why.
func (b *bank) readyz() (int, string) {
	b.t.Helper()
	a := b.send(http.MethodGet, strings.TrimSuffix(b.env.Ready.MetricsURL, "/metrics")+"/readyz", nil, "")
	return a.status, a.text
}

// notReady waits until /readyz says that the service cannot work, and why, in one of
// the given words: the first to notice may have been a connection that broke.
func (b *bank) notReady(why ...string) {
	b.t.Helper()
	var status int
	var text string
	defer func() { b.t.Logf("/readyz said %d %q", status, text) }()
	b.eventually("/readyz tells", func() bool {
		status, text = b.readyz()
		return status == http.StatusServiceUnavailable && slices.ContainsFunc(why, func(part string) bool { return strings.Contains(text, part) })
	})
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
			b.replica()
			l := b.load()
			l.more(10)
			for range 3 {
				if err := pg.Restart(t.Context(), how); err != nil {
					t.Fatal(err)
				}
				l.more(10)
			}
			if err := pg.Halt(how); err != nil {
				t.Fatal(err)
			}
			b.notReady("connect")
			if err := pg.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.ready()
			l.more(10)
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
	l.more(10)
	for range 10 {
		proxy.Cut()
		l.more(5)
	}
	for range 5 {
		// Statements arrive and are carried out; their answers are lost.
		since := query[time.Time](b, `SELECT clock_timestamp()`)
		breakNetwork(t, proxy, netfault.Fault{StallAnswers: true})
		looked := 0
		b.eventually("a statement was carried out", func() bool {
			if looked++; looked%20 == 0 { // no connection was there, and none can be made: let one
				breakNetwork(t, proxy, netfault.Fault{})
				breakNetwork(t, proxy, netfault.Fault{StallAnswers: true})
			}
			return query[int](b, `SELECT count(*) FROM pg_stat_activity
				WHERE application_name = 'cardorder' AND state LIKE 'idle%' AND state_change > $1`, since) > 0
		})
		proxy.Cut()
		breakNetwork(t, proxy, netfault.Fault{})
		l.more(5)
	}
	breakNetwork(t, proxy, netfault.Fault{Refuse: true})
	proxy.Cut()
	b.notReady("connection refused")
	breakNetwork(t, proxy, netfault.Fault{Delay: 5 * time.Millisecond})
	b.ready()
	l.more(10)
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
	l.more(10)
	breakNetwork(t, proxy, netfault.Fault{Stall: true})
	b.notReady("timeout", "deadline")
	breakNetwork(t, proxy, netfault.Fault{})
	b.ready()
	l.more(10)
	l.settled()
	b.everyAnswerKept()
}

// execute runs a statement beside the service.
func (b *bank) execute(sql string, args ...any) {
	b.t.Helper()
	conn, err := pgx.Connect(b.t.Context(), b.env.Ready.DatabaseURL)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// standby makes a server's commits wait for a standby, and skips where PostgreSQL
// came without what it takes.
func standby(t *testing.T, pg *pgrun.Server) *pgrun.Server {
	t.Helper()
	standby, err := pg.Standby(t.Context(), pgrun.Config{})
	if errors.Is(err, pgrun.ErrNoBaseBackup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), pg.SocketURL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = 'standby'`, `SELECT pg_reload_conf()`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(patience)
	for sync := false; !sync; {
		if err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')`).Scan(&sync); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("the standby never became a synchronous one")
		}
	}
	return standby
}

// hosts is the address of several servers in a URL.
func hosts(servers ...*pgrun.Server) string {
	var list []string
	for _, s := range servers {
		list = append(list, fmt.Sprintf("127.0.0.1:%d", s.Port()))
	}
	return strings.Join(list, ",")
}

// The primary dies under load and its standby takes over: no order that got its 201
// is missing there.
func TestPostgresFailover(t *testing.T) {
	t.Parallel()
	primary := startPostgres(t, pgrun.Config{})
	second := standby(t, primary)
	b := newBankOn(t, primary.URL(""), unforgivingAndEmpty(), through(hosts(primary, second)))
	b.replica()
	l := b.load()
	l.more(20)
	// One order that nobody has sent yet: the new primary cannot know that.
	b.action(lanes+"/d1/pause", `{"reason": "a test"}`, nil)
	unsent := b.place(b.thales("unsent"))
	b.execute(`UPDATE outbox SET run_at = now() + interval '1 h' WHERE order_id = $1`, unsent)
	b.action(lanes+"/d1/resume", "", nil)
	l.more(10)
	if err := primary.Halt(pgrun.Immediate); err != nil {
		t.Fatal(err)
	}
	b.notReady("connect", "read only")
	if err := second.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.env.Ready.DatabaseURL = second.URL("")
	b.ready()
	l.more(20)
	b.askNow()
	l.settled()
	b.everyAnswerKept()
	if calls := b.requests(d1sim.Filter{CardID: "card-unsent"}); calls[0].Kind != d1sim.KindStatus {
		t.Errorf("an unfinished order was sent without a question: %+v", calls)
	}
}

// askNow has D1 asked at once about all that a change of the database's history made
// doubtful: the questions are spread over a minute, which a test does not have.
func (b *bank) askNow() {
	b.t.Helper()
	b.eventually("every message is marked", func() bool { return query[int](b, `SELECT timeline FROM database_history`) == 2 })
	b.execute(`UPDATE outbox SET run_at = now() WHERE class = 2 AND claim_token IS NULL AND run_at > now()`)
}

// Rule 11: what a database has forgotten was done all the same. An order that was
// made, and that the restored database knows only as one to be sent, is asked about
// first and adopted; one that was never sent is sent, after a question too.
func TestRestoredBackupAsksFirst(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, pgrun.Config{})
	sim := unforgivingAndEmpty()
	b := newBankOn(t, pg.URL(""), sim)
	before := b.place(b.thales("before"))
	b.await(before, "SHIPPED")

	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	made, unsent := accept(t, b, b.thales("made")), accept(t, b, b.thales("unsent"))
	if err := pg.Backup(t.Context(), "monday"); errors.Is(err, pgrun.ErrNoBaseBackup) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	// After the backup, one of them is made, and an order comes that no backup has.
	b.execute(`UPDATE outbox SET run_at = now() + interval '1 h' WHERE order_id = $1`, unsent)
	if err := b.env.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.await(made, "SHIPPED")
	after := b.place(b.thales("after"))
	b.await(after, "SHIPPED")
	cards := []string{"card-made", "card-unsent"}
	calls := make(map[string]int) // so far
	for _, card := range cards {
		calls[card] = len(b.requests(d1sim.Filter{CardID: card}))
	}
	if err := pg.Restore(t.Context(), "monday"); err != nil {
		t.Fatal(err)
	}
	b.ready()
	a := b.get(made)
	asked := len(b.requests(d1sim.Filter{CardID: "card-made"})) > calls["card-made"] // the questions are spread over a minute: it may be the first
	if a.view.Status != "ACCEPTED" && a.view.Status != "OUTCOME_UNKNOWN" && !asked {
		t.Fatalf("the restored database has the order as %s", a.view.Status)
	}
	b.askNow()
	b.await(made, "SHIPPED")
	b.await(unsent, "SHIPPED")
	for _, card := range cards {
		if since := b.requests(d1sim.Filter{CardID: card})[calls[card]:]; since[0].Kind != d1sim.KindStatus {
			t.Errorf("%s: D1 was not asked first: %+v", card, since)
		}
	}
	b.oneCard("request-made")
	b.oneCard("request-unsent")
	b.noGaps(made)
	b.noGaps(unsent)
	if a := b.get(before); a.view.Status != "SHIPPED" {
		t.Errorf("an order that was done is %s", a.view.Status)
	}
	if a := b.get(after); a.status != http.StatusNotFound {
		t.Errorf("an order of after the backup: %d", a.status)
	}
}

// A host of the URL that swallows everything, and one that is a standby, keep the
// service from nothing: migrations, the pool and the listener go on to the next.
func TestPostgresOtherHostsArePassedOver(t *testing.T) {
	t.Parallel()
	primary := startPostgres(t, pgrun.Config{})
	second := standby(t, primary)
	dead := startProxy(t, primary)
	breakNetwork(t, dead, netfault.Fault{Stall: true})
	all, err := url.Parse(primary.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	all.Host = dead.Addr() + "," + hosts(second, primary)
	b := newBankOn(t, all.String(), unforgivingAndEmpty())
	b.env.Ready.DatabaseURL = primary.URL("")
	b.await(b.place(b.thales("found")), "SHIPPED")
	b.eventually("it listens", func() bool {
		return query[int](b, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cardorder-listener'`) == 1
	})
}

// A commit that waits for a standby that is gone is no commit: no 201 is given, the
// service is not ready, and when the standby is back all goes on.
func TestPostgresStandbyGone(t *testing.T) {
	t.Parallel()
	primary := startPostgres(t, pgrun.Config{})
	second := standby(t, primary)
	b := newBankOn(t, primary.URL(""), unforgivingAndEmpty(), through(hosts(primary, second)))
	l := b.load()
	l.more(10)
	if err := second.Halt(pgrun.Immediate); err != nil {
		t.Fatal(err)
	}
	b.eventually("a commit waits for the standby", func() bool {
		return query[int](b, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`) > 0
	})
	b.notReady("standby")
	if err := second.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.ready()
	l.more(10)
	l.settled()
	b.everyAnswerKept()
}

// A standby alone is no database for the service, and neither is a primary that was
// made read-only: both say so.
func TestPostgresReadOnly(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, pgrun.Config{})
	b := newBankOn(t, pg.URL(""), unforgivingAndEmpty())
	l := b.load()
	l.more(10)
	b.execute(`ALTER SYSTEM SET default_transaction_read_only = on`)
	b.execute(`SELECT pg_reload_conf()`)
	b.notReady("read only", "read-only")
	b.execute(`ALTER SYSTEM RESET default_transaction_read_only`)
	b.execute(`SELECT pg_reload_conf()`)
	b.ready()
	l.more(10)
	l.settled()
	b.everyAnswerKept()
}

// Somebody holds a lock for longer than anybody waits. Callers are told to come
// again, and nothing is lost.
func TestPostgresLockHeld(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgivingAndEmpty())
	l := b.load()
	l.more(10)
	conn, err := pgx.Connect(t.Context(), b.env.Ready.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, table := range []string{"outbox", "attempts", "order_state"} {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "LOCK TABLE "+table); err != nil {
			t.Fatal(err)
		}
		b.logs.reset()
		b.eventually("a statement gave up", func() bool { return b.logged("SQLSTATE 55P03") })
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.more(10)
	}
	l.settled()
	b.everyAnswerKept()
}

// Statements are cancelled, as by statement_timeout or by an operator, and sessions
// ended, at any moment.
func TestPostgresStatementsCancelled(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgivingAndEmpty())
	l := b.load()
	l.more(10)
	for _, end := range []string{"pg_cancel_backend", "pg_terminate_backend"} {
		for range 10 {
			b.eventually("a statement is ended", func() bool {
				return query[int](b, `SELECT count(*) FROM (SELECT `+end+`(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND application_name = 'cardorder' AND state <> 'idle') AS ended`) > 0
			})
			l.more(2)
		}
	}
	l.settled()
	b.everyAnswerKept()
}

// A statement that takes for ever is ended by its timeout, on the server or here.
func TestPostgresStatementTimeout(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgivingAndEmpty())
	b.execute(`CREATE TABLE slow (what text);
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF EXISTS (SELECT FROM slow WHERE what = TG_TABLE_NAME) THEN PERFORM pg_sleep(60); END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow();
		CREATE TRIGGER slow BEFORE INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION slow()`)
	l := b.load()
	l.more(10)
	// One after the other: without orders there would be no answers to be stored.
	b.execute(`INSERT INTO slow VALUES ('attempts')`)
	b.eventually("storing an answer gave up", func() bool { return b.logged("storing what came of calls: ") })
	b.execute(`INSERT INTO slow VALUES ('orders')`)
	b.eventually("storing an order gave up", func() bool { return b.logged("storing an order: ") })
	b.execute(`DELETE FROM slow`)
	l.more(10)
	l.settled()
	b.everyAnswerKept()
}

// smallDisk mounts a file system of so many megabytes that the database may fill.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cardorder-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm,mode=711", megabytes), "cardorder-test", dir).CombinedOutput(); err != nil {
		t.Skipf("no small disk can be mounted here: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return dir
}

// The disk of the database runs full: nothing is answered 201 that is not stored,
// /readyz tells why, and once there is room again all goes on. Somebody has to start a
// PostgreSQL that gave up, as every supervisor does.
func TestPostgresDiskFull(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, 160)
	pg := startPostgres(t, pgrun.Config{Dir: filepath.Join(disk, "pg"), Settings: map[string]string{
		"synchronous_commit": "on", "max_wal_size": "64MB", "min_wal_size": "32MB", "fsync": "off",
	}})
	b := newBankOn(t, pg.URL(""), unforgivingAndEmpty())
	l := b.load()
	l.more(10)
	// All but a little is taken by somebody else.
	full := filepath.Join(disk, "full")
	file, err := os.Create(full)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = file.Write(block)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	b.notReady("No space left on device")
	// And now there is no room for its log either: it crashes, and cannot recover.
	conn, err := pgx.Connect(t.Context(), pg.SocketURL(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_logical_emit_message(true, 'test', repeat('x', 90000000))`); err == nil {
		t.Error("a log of 90 MB was written to a full disk")
	}
	_ = conn.Close(t.Context())
	b.notReady("connect")
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if err := pg.Restart(t.Context(), pgrun.Immediate); err != nil {
		t.Fatal(err)
	}
	b.ready()
	l.more(10)
	l.settled()
	b.everyAnswerKept()
}

// A service that starts while its database is away waits for it, and says so; one that
// the database turns away ends.
func TestStartWaitsForThePostgres(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, pgrun.Config{})
	b := newBankOn(t, pg.URL(""), unforgivingAndEmpty())
	id := b.place(b.thales("kept"))
	b.await(id, "SHIPPED")
	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Where to ask it while it starts.
	admin := strings.TrimSuffix(strings.TrimPrefix(b.env.Ready.MetricsURL, "http://"), "/metrics")
	b.env.ServiceConfig().Admin.Listen = admin
	if err := pg.Halt(pgrun.Fast); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- b.env.StartService(t.Context()) }()
	b.eventually("the log tells", func() bool { return b.logged("the database is away: waiting for it") })
	b.notReady("connect")
	select {
	case err := <-started:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	if err := pg.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	b.ready()
	if a := b.get(id); a.view.Status != "SHIPPED" {
		t.Errorf("status %s", a.view.Status)
	}

	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(pg.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(pgrun.Superuser, "wrong")
	cfg := *b.env.ServiceConfig()
	cfg.Database.URL = config.NewSecret(u.String())
	if _, err := app.Start(t.Context(), &cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "28P01") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a start with a wrong password: %v", err)
	}
}

// A failover must lose nothing, so a database that may lose something is warned of.
func TestUnsafeFailoverIsWarnedOf(t *testing.T) {
	t.Parallel()
	const warning = "commits wait for no standby"
	primary := startPostgres(t, pgrun.Config{})
	if b := newBankOn(t, primary.URL(""), fast); b.logged(warning) {
		t.Error("one host alone was warned of")
	}
	elsewhere := through(fmt.Sprintf("127.0.0.1:%d,127.0.0.1:1", primary.Port()))
	if b := newBankOn(t, primary.URL(""), fast, elsewhere); !b.logged(warning) {
		t.Error("several hosts without synchronous replication were not warned of")
	}
	standby(t, primary)
	if b := newBankOn(t, primary.URL(""), fast, elsewhere); b.logged(warning) {
		t.Error("synchronous replication was warned of")
	}
}

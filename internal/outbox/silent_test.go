package outbox

import (
	"net/http"
	"testing"
	"time"

	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// silent stores orders that D1 took a day ago and has told nothing of since.
func (w *world) silent(issuer string, n int) {
	w.t.Helper()
	w.limits = &order.Limits{SilentAfter: time.Hour}
	w.exec(`INSERT INTO orders (issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id, distribution_channel,
			terms, urgent, warnings, content_hash, content_hash_version, created_by, created_at)
		SELECT $1, ('01a00000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'silent-' || i, 'silent-' || i, 'c', 'gold', 'THALES',
			'{"services": {"issuance": "RENEWAL"}}', false, '{}', 'x', 1, 'test', now() - interval '1 day' FROM generate_series(1, $2::integer) i`, issuer, n)
	w.exec(`INSERT INTO order_state (issuer_id, order_id, version, status, rank, step_rank, top_rank, ends_at, operation_id, first_sent_at, heard_at, next_check_at)
		SELECT issuer_id, id, 1, 'IN_PRODUCTION', 40, 40, 40, 'SHIPPED', issuer_request_id, created_at, created_at, now() - random() * interval '1 h' FROM orders`)
	w.exec(`ANALYZE orders, order_state`)
}

// questions is how often D1 was asked since the history had so many entries, until its
// last order.
func (w *world) questions(since int) (n int) {
	waiting := 0
	for _, r := range w.sim.History(d1sim.Filter{})[since:] {
		switch r.Kind {
		case d1sim.KindStatus:
			waiting++
		case d1sim.KindProduction:
			n, waiting = n+waiting, 0
		}
	}
	return n
}

// However many orders D1 is silent about, new ones go before the questions about them.
func TestSilentOrdersKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	const silent, n = 100_000, 60
	w := newWorld(t, d1sim.Settings{UnknownCard: d1sim.UnknownCardEmpty, AnswerDelay: d1sim.Duration(2 * time.Millisecond)})
	w.silent(bank, silent)
	p := w.start(func(_ *Fleet, c *Config) { c.Concurrency = 8 })
	asked := func() int { return p.attempts(store.AttemptAsk, d1client.ReasonFound) }
	w.eventually("D1 is asked about them", func() bool { return asked() >= 30 })
	// All of them are there at once, however long it takes to place them.
	_, err := w.store.PauseLane(t.Context(), store.LaneOf(bank), "test", "a reason")
	w.must(err)
	w.accept(bank, "order", n)
	w.eventually("nothing is being asked", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox WHERE claim_token IS NOT NULL`) == 0
	})
	before := len(w.sim.History(d1sim.Filter{}))
	_, err = w.store.ResumeLane(t.Context(), store.LaneOf(bank), "test")
	w.must(err)
	w.submitted(bank, n)
	w.onceEach(bank, n)
	// A quarter of the calls, and what there was room for before the first order.
	if got := w.questions(before); got > n {
		t.Errorf("%d questions were asked before %d orders were sent", got, n)
	}
	since := asked()
	w.eventually("D1 is asked about others", func() bool { return asked() > since })
	if n := query[int](w, `SELECT count(*) FROM outbox WHERE run_at <= now()`); n > 8 {
		t.Errorf("%d questions wait", n)
	}
}

// A D1 that answered nothing for long is not asked about everything at once when it is
// back.
func TestNoStormAfterAnOutage(t *testing.T) {
	t.Parallel()
	const silent = 2000
	w := newWorld(t, d1sim.Settings{UnknownCard: d1sim.UnknownCardEmpty})
	w.must(w.sim.Script(d1sim.Script{Kind: d1sim.KindStatus, Action: d1sim.ActionAnswer, Status: http.StatusServiceUnavailable, Times: 1000}))
	w.silent(bank, silent)
	p := w.start(func(_ *Fleet, c *Config) { c.Concurrency, c.BreakerThreshold = 8, 3 })
	w.eventually("the breaker is open", func() bool { return p.attempts(store.AttemptAsk, d1client.ReasonUnavailable) >= 3 })
	// All that would have been asked about in the meantime is due.
	w.exec(`UPDATE order_state SET next_check_at = now()`)
	looked := time.Now()
	w.eventually("all are looked at in vain", func() bool {
		return query[int](w, `SELECT count(*) FROM order_state WHERE next_check_at <= $1`, looked) == 0
	})
	if n := query[int](w, `SELECT count(*) FROM outbox`); n > 8 { // what was open when the breaker opened, and not one more
		t.Errorf("%d questions wait for D1 to come back", n)
	}
	w.sim.ClearScripts()
	w.exec(`UPDATE order_state SET next_check_at = now()`)
	_, err := w.store.ResumeLane(t.Context(), store.LaneOf(bank), "test")
	w.must(err)
	most := 0
	w.eventually("D1 is asked again, and the others come later", func() bool {
		most = max(most, query[int](w, `SELECT count(*) FROM outbox WHERE run_at <= now()`))
		return p.attempts(store.AttemptAsk, d1client.ReasonFound) > 0 && query[int](w, `SELECT count(*) FROM order_state WHERE next_check_at <= now()`) == 0
	})
	if most > 8 {
		t.Errorf("%d questions waited at once", most)
	}
	if spread := query[time.Duration](w, `SELECT max(next_check_at) - min(next_check_at) FROM order_state WHERE checks = 0`); spread < 5*time.Minute {
		t.Errorf("the others come within %v", spread)
	}
}

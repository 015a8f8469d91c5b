package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// whole checks what has to be true of the tables after every commit.
func (f *fixture) whole() {
	f.t.Helper()
	for what, sql := range map[string]string{
		"orders without all their rows": `SELECT count(*) FROM orders o WHERE 1 <> (SELECT count(*) FROM order_state s JOIN order_payload p USING (issuer_id, order_id)
			WHERE s.issuer_id = o.issuer_id AND s.order_id = o.id)`,
		"states without an order":   `SELECT count(*) FROM order_state s WHERE NOT EXISTS (SELECT FROM orders o WHERE o.issuer_id = s.issuer_id AND o.id = s.order_id)`,
		"payloads without an order": `SELECT count(*) FROM order_payload p WHERE NOT EXISTS (SELECT FROM orders o WHERE o.issuer_id = p.issuer_id AND o.id = p.order_id)`,
		"gaps in events": `SELECT count(*) FROM order_state s WHERE version <> (SELECT count(*) FROM order_events e
			WHERE e.issuer_id = s.issuer_id AND e.order_id = s.order_id AND seq BETWEEN 1 AND version)`,
		"events of no order": `SELECT count(*) FROM order_events e WHERE NOT EXISTS (SELECT FROM order_state s WHERE s.issuer_id = e.issuer_id AND s.order_id = e.order_id AND e.seq <= s.version)`,
		"keys of no order":   `SELECT count(*) FROM idempotency_keys k WHERE NOT EXISTS (SELECT FROM orders o WHERE o.issuer_id = k.issuer_id AND o.id = k.order_id)`,
		"orders whose message is missing, or should be": `SELECT count(*) FROM order_state s
			WHERE (status IN ('ACCEPTED', 'OUTCOME_UNKNOWN')) <> EXISTS (SELECT FROM outbox m WHERE m.issuer_id = s.issuer_id AND m.order_id = s.order_id AND m.kind = 'submit')`,
		"leases of nobody, or claims without one": `SELECT count(*) FROM outbox WHERE (claim_token IS NULL) <> (leased_until IS NULL)`,
		"halts that nobody does":                  `SELECT count(*) FROM outbox WHERE halt IS NOT NULL AND claim_token IS NULL AND maybe_sent_at IS NULL`,
		"messages in the class of questions that ask nothing, or questions in another": `SELECT count(*) FROM outbox
			WHERE claim_token IS NULL AND (class = 2 AND kind = 'submit' AND maybe_sent_at IS NULL OR kind = 'ask' AND class <> 2)`,
		"unknown outcomes that count as refusals": `SELECT count(*) FROM outbox WHERE claim_token IS NULL AND maybe_sent_at IS NOT NULL AND refused_at IS NOT NULL`,
		"lanes half stopped":                      `SELECT count(*) FROM lanes WHERE (stopped_at IS NULL) <> (probe_at IS NULL)`,
		"orders taken without an operation that nobody asks about": `SELECT count(*) FROM order_state
			WHERE operation_id IS NULL AND rank > 0 AND ended_at IS NULL AND next_check_at IS NULL`,
		"orders with two operations that nobody is told of": `SELECT count(*) FROM order_state s WHERE NOT 'second-card' = ANY (attention)
			AND operation_id IS NOT NULL AND EXISTS (SELECT FROM operations p WHERE p.order_id = s.order_id AND p.operation = 'PRODUCE' AND p.operation_id <> s.operation_id)`,
		"messages of no order": `SELECT count(*) FROM outbox m WHERE NOT EXISTS (SELECT FROM orders o WHERE o.issuer_id = m.issuer_id AND o.id = m.order_id)`,
		"open orders that do not hold their card once": `SELECT count(*) FROM order_state s JOIN orders o ON o.id = s.order_id
			LEFT JOIN card_guard g ON g.issuer_id = o.issuer_id AND g.card_id = o.card_id
			WHERE ended_at IS NULL AND coalesce(cardinality(array_positions(g.order_ids, o.id)), 0) <> 1`,
		"cards held by no open order": `SELECT count(*) FROM card_guard g, unnest(order_ids) AS u(id) WHERE NOT EXISTS (SELECT FROM order_state s JOIN orders o ON o.id = s.order_id
			WHERE o.id = u.id AND ended_at IS NULL AND o.card_id = g.card_id AND o.issuer_id = g.issuer_id)`,
		"scheduled orders that nobody releases": `SELECT count(*) FROM order_state s JOIN orders o ON o.id = s.order_id
			WHERE hold = 'schedule' AND (status <> 'HELD' OR not_before IS NULL OR next_check_at IS NULL OR next_check_at > not_before)`,
		"reasons to hold what is not held, or none": `SELECT count(*) FROM order_state WHERE (status = 'HELD') <> (hold IS NOT NULL)`,
		"ended orders that are looked at":           `SELECT count(*) FROM order_state WHERE ended_at IS NOT NULL AND next_check_at IS NOT NULL`,
		"guards of nothing":                         `SELECT count(*) FROM card_guard WHERE order_ids = '{}' AND creation_until IS NULL`,
		"cards with two open orders that nobody asked for": `SELECT count(*) FROM (SELECT FROM orders o JOIN order_state s ON s.order_id = o.id
			WHERE ended_at IS NULL AND duplicate_override IS NULL AND NOT 'contradiction' = ANY (attention) GROUP BY o.issuer_id, card_id HAVING count(*) > 1) c`,
		"batches that are miscounted": `SELECT count(*) FROM order_batches b CROSS JOIN LATERAL (SELECT count(*) n, count(*) FILTER (WHERE outcome = 'accepted') a,
				count(*) FILTER (WHERE outcome = 'replayed') p, count(*) FILTER (WHERE outcome = 'refused') r
			FROM order_batch_rows r WHERE r.issuer_id = b.issuer_id AND r.batch_id = b.id) c WHERE (rows_read, accepted, replayed, refused) <> (n, a, p, r)`,
		"accepted rows without their order": `SELECT count(*) FROM order_batch_rows r WHERE outcome = 'accepted' AND NOT EXISTS (SELECT FROM orders o WHERE o.id = r.order_id AND o.batch_id = r.batch_id)`,
		"orders of a batch without their row": `SELECT count(*) FROM orders o WHERE batch_id IS NOT NULL AND 1 <> (SELECT count(*) FROM order_batch_rows r
			WHERE r.issuer_id = o.issuer_id AND r.batch_id = o.batch_id AND r.order_id = o.id AND outcome = 'accepted')`,
	} {
		if n := value[int](f, sql); n != 0 {
			f.t.Errorf("%s: %d", what, n)
		}
	}
}

// Whatever comes at once through two replicas, sessions that die included, nothing is
// stored twice, by half, or left behind.
func TestNothingIsLeftByHalf(t *testing.T) {
	t.Parallel()
	f := open(t)
	limits := order.Limits{SilentAfter: 50 * time.Millisecond, Budget: map[order.Status]time.Duration{order.Accepted: 30 * time.Millisecond, order.Ready: time.Millisecond}}
	limited := store.Config{Limits: func(string, string) *order.Limits { return &limits }}
	replicas := []*store.Store{f.with(limited), f.with(limited)}
	var mu sync.Mutex
	accepted, firsts := make(map[uuid.UUID]bool), make(map[string]uuid.UUID)
	expected := func(err error) {
		kind, _ := conflictOf(err)
		if err != nil && kind == "" && !store.Unavailable(err) && !errors.Is(err, store.ErrBatchBusy) && !errors.Is(err, store.ErrBatchCancelled) {
			t.Error(err)
		}
	}
	random := func(r *rand.Rand) store.Acceptance {
		n := r.IntN(90)
		a := acceptance(fmt.Sprint("card-", n%40), fmt.Sprint("r-", n), "")
		if r.IntN(2) == 0 {
			a.IdempotencyKey = fmt.Sprint("k-", r.IntN(120))
		}
		if r.IntN(8) == 0 {
			a.Request.DuplicateOverride = "for the test"
		}
		if r.IntN(2) == 0 {
			a.Request.Production.Services.Issuance = order.IssuanceRenewal
		}
		if r.IntN(3) == 0 {
			a.Request.NotBefore = time.Now().Add(time.Duration(r.IntN(300)) * time.Millisecond)
		}
		a.Request.Hold = r.IntN(10) == 0
		return a
	}
	var batches sync.Map
	tasks := []func(*store.Store, *rand.Rand){
		func(st *store.Store, r *rand.Rand) {
			a := random(r)
			got, err := st.Accept(t.Context(), a)
			expected(err)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			id, request := got.Order.ID, a.Request.Production.IssuerRequestID
			if first := firsts[request]; first != uuid.Nil && first != id || !got.Replayed && accepted[id] {
				t.Errorf("%s led to %s after %s", request, id, first)
			}
			firsts[request] = id
			accepted[id] = accepted[id] || !got.Replayed
		},
		func(st *store.Store, r *rand.Rand) {
			n := r.IntN(12)
			w, _, err := st.OpenBatch(t.Context(), store.BatchUpload{IssuerID: issuer, Key: fmt.Sprint(n), Format: "ndjson", Hold: n%3 == 0})
			expected(err)
			if err != nil {
				return
			}
			batches.Store(n, w.ID())
			stop := r.IntN(90)
			for i := range 60 {
				if i == stop {
					w.Interrupt(t.Context())
					return
				}
				stored, err := w.Stored(t.Context(), int64(i+1), fmt.Append(nil, i))
				switch {
				case err != nil:
					expected(err)
					w.Interrupt(t.Context())
					return
				case stored:
				case i%7 == 0:
					err = w.Accept(t.Context(), int64(i+1), random(r))
				default:
					name := fmt.Sprint("batch-", n, "-", i)
					err = w.Accept(t.Context(), int64(i+1), acceptance(name, name, ""))
				}
				if err != nil {
					t.Error(err)
				}
			}
			if _, err = w.Finish(t.Context()); err != nil {
				expected(err)
				w.Interrupt(t.Context())
			}
		},
		func(st *store.Store, r *rand.Rand) {
			if id, ok := batches.Load(r.IntN(12)); ok {
				action := []store.BatchAction{store.BatchHold, store.BatchRelease, store.BatchRelease, store.BatchCancel}[r.IntN(4)]
				_, err := st.Act(t.Context(), issuer, id.(uuid.UUID), action, "operator")
				expected(err)
			}
		},
		func(st *store.Store, r *rand.Rand) {
			lease := time.Duration(r.IntN(100)) * time.Millisecond
			messages, err := st.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.Class(r.IntN(3)), Limit: 10, Lease: lease})
			expected(err)
			if len(messages) == 0 {
				messages, err = st.ClaimProbe(t.Context(), lane, lease)
				expected(err)
			}
			if len(messages) > 0 && r.IntN(6) == 0 {
				expected(st.Release(t.Context(), messages[:1]))
				messages = messages[1:]
			}
			var done []store.Completion
			for _, m := range messages {
				c := store.Completion{Message: m, Attempt: attempt("x"), Next: store.Next{Unsent: true}}
				switch n := r.IntN(8); {
				case m.Kind == store.KindAsk:
					c.Attempt.Kind, c.Next = store.AttemptAsk, store.Next{Done: n < 6}
				case n < 2:
					c = taken(m, "op-"+m.OrderID.String())
				case n == 2:
					c = taken(m, "")
					c.Seen = nil
				case n == 3:
					c.Evidence, c.Next = []order.Evidence{order.LostAnswer{}}, store.Next{Maybe: store.MaybeNow, GiveUp: r.IntN(9) == 0}
				case n == 4 && m.MaybeSent:
					c.Evidence, c.Next = []order.Evidence{order.NotFound{}}, store.Next{Maybe: store.MaybeClear}
				case m.MaybeSent:
					c.Evidence, c.Next = []order.Evidence{order.LostAnswer{}}, store.Next{Asks: m.Asks + 1}
				case n < 7:
					c = refused(m, 4)
					c.Next.RunIn, c.Next.GiveUp = time.Duration(r.IntN(10))*time.Millisecond, r.IntN(9) == 0
				}
				done = append(done, c)
			}
			expected(st.Complete(t.Context(), done))
		},
		func(st *store.Store, r *rand.Rand) {
			mu.Lock()
			var id uuid.UUID
			for id = range accepted {
				break
			}
			mu.Unlock()
			action := store.Action{IssuerID: issuer, OrderID: id, Actor: "operator"}
			var err error
			switch r.IntN(10) {
			case 0:
				_, err = st.PauseLane(t.Context(), lane, "operator", "for the test")
			case 1, 2, 3, 4:
				_, err = st.ResumeLane(t.Context(), lane, "operator")
			case 5:
				_, err = st.Check(t.Context(), issuer, 10)
			case 6:
				if _, err = st.Refresh(t.Context(), action); errors.Is(err, store.ErrNotSent) || errors.Is(err, store.ErrNotFound) {
					err = nil
				}
			default:
				if _, err = st.Retry(t.Context(), store.Retry{Action: action}); errors.Is(err, store.ErrNotRetryable) || errors.Is(err, store.ErrNotFound) {
					err = nil
				}
			}
			expected(err)
		},
		func(st *store.Store, r *rand.Rand) {
			mu.Lock()
			var told []store.Notification
			for id := range accepted {
				if len(told) < 5 {
					status := []string{"CARD_PROD_READY", "CARD_PROD_DONE", "CARD_PROD_CANCELED"}[r.IntN(3)]
					told = append(told, notification(r.IntN(1<<30), "op-"+id.String(), status))
				}
			}
			mu.Unlock()
			_, err := st.Receive(t.Context(), issuer, told)
			expected(err)
		},
	}
	var wg sync.WaitGroup
	for i, weight := range []int{6, 2, 1, 4, 1, 1} {
		for j := range 2 * weight {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
				for range 60 / weight {
					tasks[i](replicas[j%2], r)
				}
			})
		}
	}
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		again := time.NewTicker(100 * time.Millisecond)
		defer again.Stop()
		for {
			select {
			case <-again.C:
				f.exec(`SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
					WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' ORDER BY random() LIMIT 1) s`)
			case <-stop:
				return
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-stopped
	f.whole()
	for id, is := range accepted {
		if is && value[int](f, `SELECT count(*) FROM orders WHERE id = $1`, id) != 1 {
			t.Errorf("the accepted order %s is not there", id)
		}
	}
}

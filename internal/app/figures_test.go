package app_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

// many places a file of orders, each with a card of its own.
func (b *bank) many(n int) {
	b.t.Helper()
	template := b.thales("many")
	var file strings.Builder
	for i := range n {
		name := fmt.Sprintf("many-%04d", i)
		file.Write(mustJSON(b.t, template.with(body{
			"cardId": "card-" + name, "issuerRequestId": "request-" + name, "consumerId": "consumer-" + name,
		})))
		file.WriteByte('\n')
	}
	if a := b.upload("", "many", "application/x-ndjson", strings.NewReader(file.String()), nil); a.status != http.StatusCreated || a.Rows.Accepted != n {
		b.t.Fatalf("placing %d orders: %d %s", n, a.status, a.text)
	}
}

// made counts the cards of each request by what the simulator made.
func (b *bank) made() map[string]int {
	b.t.Helper()
	cards, err := b.env.Management.CardsOf(b.t.Context(), local.IssuerID)
	if err != nil {
		b.t.Fatal(err)
	}
	made := make(map[string]int)
	for _, c := range cards {
		made[c.IssuerRequestID]++
	}
	return made
}

// Rule 6 in figures: D1 makes a second card of whatever is sent twice, a fifth of its
// answers get lost after the order was taken and some orders on their way, questions
// fare no better, and notifications tell nothing. 2,000 orders are 2,000 cards.
func TestTwoThousandOrdersAreTwoThousandCards(t *testing.T) {
	t.Parallel()
	const n = 2000
	sim := asking()
	sim.HoldNotifications, sim.StopAt = true, d1sim.CardProdRequested
	sim.Faults = &d1sim.Faults{Seed: 4, LostAfter: 0.2, LostBefore: 0.05}
	b := newBank(t, sim, with(func(s *config.Sending) {
		s.Concurrency, s.ResendAfter, s.BreakerThreshold = 32, time.Second, 20
	}))
	b.many(n)
	b.within(5*patience, "every order has its operation", func() bool {
		return query[int](b, `SELECT count(*) FROM order_state WHERE status = 'SUBMITTED' AND operation_id IS NOT NULL`) == n
	})
	made := b.made()
	for request, cards := range made {
		if cards != 1 {
			t.Errorf("%s: %d cards", request, cards)
		}
	}
	if len(made) != n {
		t.Errorf("%d orders have cards", len(made))
	}
	if needy := query[int](b, `SELECT count(*) FROM order_state WHERE attention IS NOT NULL AND attention <> '{}'`); needy != 0 {
		t.Errorf("%d orders need a human", needy)
	}
	counts, err := b.env.Management.FaultCounts(t.Context())
	if err != nil || counts[d1sim.FaultLostAfter] < n/10 || counts[d1sim.FaultLostBefore] < n/100 {
		t.Errorf("faults %v %v: the test proves nothing", counts, err)
	}
	b.nothingLeft()
	t.Logf("%d orders, %d cards, faults %v", n, len(made), counts)
}

// The bound of the guarantee: a bureau that shows an accepted order later than
// resendAfter, and makes a second card of a repeat, gets doubles made. Each of them is
// flagged as soon as D1 tells of both operations, and no other order is.
func TestDoublesAreFlagged(t *testing.T) {
	t.Parallel()
	const n = 300
	for name, asked := range map[string]bool{"told by notifications": false, "told when asked": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := asking()
			sim.HoldNotifications, sim.StopAt, sim.StatusLag = true, d1sim.CardProdRequested, d1sim.Duration(time.Hour)
			sim.MaxPerCall = 50
			sim.Faults = &d1sim.Faults{Seed: 5, LostAfter: 0.3, ProductionOnly: true}
			b := newBank(t, sim, with(func(s *config.Sending) {
				s.Concurrency, s.ResendAfter, s.BreakerThreshold = 32, 200*time.Millisecond, 20
			}))
			b.many(n)
			b.within(5*patience, "every order has an operation", func() bool {
				return query[int](b, `SELECT count(*) FROM order_state WHERE operation_id IS NOT NULL`) == n
			})
			b.settings(func(s *d1sim.Settings) { s.Faults, s.StatusLag, s.HoldNotifications = nil, 0, asked })
			doubled := []string{}
			for request, cards := range b.made() {
				if cards > 1 {
					doubled = append(doubled, request)
				}
			}
			slices.Sort(doubled)
			if len(doubled) < n/10 {
				t.Fatalf("%d doubles: the test proves nothing", len(doubled))
			}
			if asked {
				for _, id := range query[[]string](b, `SELECT array_agg(id::text) FROM orders`) {
					b.refresh(id)
				}
			}
			flagged := func() []string {
				return query[[]string](b, `
					SELECT coalesce(array_agg(o.issuer_request_id ORDER BY o.issuer_request_id), '{}') FROM orders o
						JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
					WHERE 'second-card' = ANY (s.attention)`)
			}
			b.eventually("every double is flagged", func() bool { return len(flagged()) >= len(doubled) })
			if asked {
				b.nothingLeft()
			} else {
				b.wait(d1sim.Condition{Idle: true})
			}
			if got := flagged(); !slices.Equal(got, doubled) {
				t.Errorf("%d are flagged, %d doubled", len(got), len(doubled))
			}
			t.Logf("%d orders, %d doubled, all flagged", n, len(doubled))
		})
	}
}

// Everything at once: D1 loses, delays, refuses and forgets at random, on both sides.
// When it has calmed down and was asked once about every order, all of them have their
// card, and stand where D1 says they stand.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	const n = 150
	sim := asking()
	sim.MaxPerCall, sim.TokenLifetime = 20, d1sim.Duration(2*time.Second)
	sim.Faults = &d1sim.Faults{
		Seed:       6,
		LostBefore: 0.04, LostAfter: 0.06, ErrorBefore: 0.04, ErrorAfter: 0.04, RateLimited: 0.04,
		Slow: 0.02, SlowBy: d1sim.Duration(7 * time.Second), Revoked: 0.02, NoOperationID: 0.05, TokenErrors: 0.05,
		LostNotifications: 0.1, DuplicateNotifications: 0.1, LateNotifications: 0.1, LateBy: d1sim.Duration(300 * time.Millisecond),
	}
	b := newBank(t, sim, with(func(s *config.Sending) { s.Concurrency, s.BreakerThreshold = 32, 20 }))
	b.many(n)
	b.within(5*patience, "D1 has every order", func() bool {
		return query[int](b, `SELECT count(*) FROM order_state WHERE status NOT IN ('ACCEPTED', 'OUTCOME_UNKNOWN')`) == n
	})
	b.settings(func(s *d1sim.Settings) { s.Faults = nil })
	b.wait(d1sim.Condition{Idle: true})
	for _, id := range query[[]string](b, `SELECT array_agg(order_id::text) FROM order_state WHERE status <> 'SHIPPED'`) {
		b.refresh(id)
	}
	b.eventually("every order is shipped", func() bool {
		return query[int](b, `SELECT count(*) FROM order_state WHERE status = 'SHIPPED'`) == n
	})
	made := b.made()
	for request, cards := range made {
		if cards != 1 {
			t.Errorf("%s: %d cards", request, cards)
		}
	}
	if len(made) != n {
		t.Errorf("%d orders have cards", len(made))
	}
	if needy := query[[]string](b, `SELECT coalesce(array_agg(DISTINCT a), '{}') FROM order_state, unnest(attention) a`); len(needy) != 0 {
		t.Errorf("orders need a human: %v", needy)
	}
	if gaps := query[int](b, `
		SELECT count(*) FROM order_state s WHERE s.version <> (SELECT count(*) FROM order_events e
			WHERE e.issuer_id = s.issuer_id AND e.order_id = s.order_id AND e.seq BETWEEN 1 AND s.version)`); gaps != 0 {
		t.Errorf("%d orders have gaps", gaps)
	}
	b.nothingLeft()
	counts, err := b.env.Management.FaultCounts(t.Context())
	delete(counts, d1sim.FaultTokenError) // there may be none: tokens are few
	if err != nil || len(counts) < 11 {
		t.Errorf("faults %v %v: not every kind was met", counts, err)
	}
	t.Logf("faults %v", counts)
}

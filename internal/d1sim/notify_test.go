package d1sim_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"testing"

	"cardorder/internal/d1sim"
)

func TestNotificationsAreBatched(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, HoldNotifications: true, MaxPerCall: 4})
	for i := range 10 {
		b.accepted(fmt.Sprintf("card-%d", i), b.thales(fmt.Sprintf("request-%d", i)))
	}
	if calls := b.bank.received(); len(calls) != 0 {
		t.Fatalf("delivered while held: %v", calls)
	}
	b.set(func(s *d1sim.Settings) { s.HoldNotifications = false })
	b.wait(d1sim.Condition{Idle: true, Deliveries: 3})

	var sizes []int
	var cards []string
	for _, call := range b.bank.received() {
		sizes = append(sizes, len(call))
		for _, op := range call {
			cards = append(cards, op.CardID)
		}
	}
	if !slices.Equal(sizes, []int{4, 4, 2}) || !slices.IsSorted(cards) {
		t.Errorf("calls of %v operations, of cards %v", sizes, cards)
	}
	deliveries := b.sim.Notifications()
	if first := deliveries[0]; len(deliveries) != 3 || first.Count != 4 || first.Status != 204 || first.Attempts != 1 ||
		len(first.Operations) != 4 || first.Operations[0].Status != d1sim.CardProdRequested || first.Operations[0].IssuerRequestID != "request-0" {
		t.Errorf("deliveries %+v", deliveries)
	}
	if b.bank.tokensGiven() != 1 {
		t.Errorf("%d tokens fetched, want 1", b.bank.tokensGiven())
	}
}

func TestNotificationIsRetriedUntil204(t *testing.T) {
	t.Parallel()
	b := newBureau(t, fast)
	b.set(func(s *d1sim.Settings) { s.StopAt = d1sim.CardProdRequested })
	answers := []int{500, 200, 404, 302, 204}
	b.bank.answers(func(call int) int { return answers[call-1] })
	b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Idle: true})

	deliveries := b.sim.Notifications()
	if len(deliveries) != len(answers) {
		t.Fatalf("deliveries %+v", deliveries)
	}
	for i, d := range deliveries {
		if d.Status != answers[i] || d.Attempts != i+1 || (d.Error == "") != (d.Status == 204) {
			t.Errorf("delivery %d: %+v", i, d)
		}
	}
}

func TestNotificationTokenIsFetchedAgainOn401(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.bank.answers(func(call int) int {
		if call == 1 {
			return http.StatusUnauthorized
		}
		return http.StatusNoContent
	})
	b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Idle: true})
	if got := b.bank.tokensGiven(); got != 2 {
		t.Errorf("%d tokens fetched, want 2", got)
	}
}

func TestTokenEndpointIsHeldToItsContract(t *testing.T) {
	t.Parallel()
	b := newBureau(t, fast)
	for _, grant := range []string{
		`{"access_token":"%s","token_type":"Bearer","expires_in":900}`,
		`{"access_token":"%s","token_type":"bearer","expires_in":"900"}`,
		`{"access_token":"","token_type":"Bearer","expires_in":"900"}`,
	} {
		b.bank.mu.Lock()
		b.bank.grant = grant
		b.bank.mu.Unlock()
		if status, err := b.sim.SendNotification(t.Context(), issuerID, []byte("{}")); err == nil {
			t.Errorf("%s: sent, answered %d", grant, status)
		}
	}
}

func TestNotificationsTwiceAndInReverse(t *testing.T) {
	t.Parallel()
	set := fast
	set.HoldNotifications = true
	b := newBureau(t, set)
	b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped})
	b.set(func(s *d1sim.Settings) {
		s.HoldNotifications, s.ReverseNotifications, s.DuplicateNotifications = false, true, true
	})
	b.wait(d1sim.Condition{Idle: true})

	reversed := slices.Clone(toShipped)
	slices.Reverse(reversed)
	got := b.bank.statuses()
	if len(got) != 2*len(toShipped) || !slices.Equal(got[:len(toShipped)], reversed) {
		t.Errorf("notified of %v", got)
	}
	for _, status := range toShipped {
		if seen := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s != status }); len(seen) != 2 {
			t.Errorf("%s delivered %d times", status, len(seen))
		}
	}
}

func TestNotificationRequestIDs(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, RequestIDPlace: d1sim.PlaceDetails})
	b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Idle: true})
	b.set(func(s *d1sim.Settings) { s.NotifyWithoutRequestIDs = true })
	b.accepted("card-2", b.thales("request-2"))
	b.wait(d1sim.Condition{Idle: true})

	got := slices.Concat(b.bank.received()...)
	if got[0].IssuerRequestID != "" || got[0].Details.IssuerRequestID != "request-1" ||
		got[1].IssuerRequestID != "" || got[1].Details.IssuerRequestID != "" {
		t.Errorf("notified of %+v", got)
	}
}

func TestHandMadeNotification(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.bank.answers(func(int) int { return http.StatusBadRequest })
	status, err := b.management.SendNotification(t.Context(), issuerID, []byte(`{"operations":[{"odd":true}]}`))
	if err != nil || status != http.StatusBadRequest {
		t.Errorf("got %d %v", status, err)
	}
	if got := string(b.bank.calls[0]); got != `{"operations":[{"odd":true}]}` {
		t.Errorf("sent %s", got)
	}
	if _, err := b.management.SendNotification(t.Context(), "bank000009", nil); err == nil {
		t.Error("sent to an unknown issuer")
	}
}

func TestRunEndsAndMayRunAgain(t *testing.T) {
	t.Parallel()
	sim, err := d1sim.New(d1sim.Config{Issuers: []d1sim.Issuer{{ID: issuerID}}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := sim.Run(ctx); err != nil {
			t.Error(err)
		}
	}
}

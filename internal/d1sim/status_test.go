package d1sim_test

import (
	"net/http"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

func TestStatusLag(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, StatusLag: d1sim.Duration(time.Hour)})
	operationID := b.accepted("card-1", b.thales("request-1"))

	if got := b.productionStatus("card-1"); got.status != http.StatusNotFound {
		t.Errorf("during the lag: got %d %s", got.status, got.body)
	}
	b.set(func(s *d1sim.Settings) { s.UnknownCard = d1sim.UnknownCardEmpty })
	if got := b.productionStatus("card-1"); got.status != http.StatusOK || string(got.body) != `{"operations":[]}` {
		t.Errorf("during the lag, unknownCard empty: got %d %s", got.status, got.body)
	}
	b.set(func(s *d1sim.Settings) { s.StatusLag = 0 })
	if got := b.operations("card-1"); len(got) != 1 || got[0].OperationID != operationID {
		t.Errorf("after the lag: got %+v", got)
	}
}

func TestStatusOfSeveralOrders(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	first := b.accepted("card-1", b.thales("request-1"))
	second := b.accepted("card-1", b.thales("request-2"))
	b.accepted("card-2", b.thales("request-3"))

	got := b.operations("card-1")
	if len(got) != 2 || got[0].OperationID != first || got[1].OperationID != second {
		t.Errorf("got %+v", got)
	}
	b.set(func(s *d1sim.Settings) { s.StatusLatestOnly = true })
	if got := b.operations("card-1"); len(got) != 1 || got[0].OperationID != second {
		t.Errorf("latest only: got %+v", got)
	}
}

func TestStatusRequestIDs(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.accepted("card-1", b.thales("request-1"))
	for _, c := range []struct {
		place, top, details string
		without             bool
	}{
		{place: "", top: "request-1"},
		{place: d1sim.PlaceTop, top: "request-1"},
		{place: d1sim.PlaceDetails, details: "request-1"},
		{place: d1sim.PlaceBoth, top: "request-1", details: "request-1"},
		{place: d1sim.PlaceBoth, without: true},
	} {
		b.set(func(s *d1sim.Settings) { s.RequestIDPlace, s.StatusWithoutRequestIDs = c.place, c.without })
		got := b.operations("card-1")[0]
		if got.IssuerRequestID != c.top || got.Details.IssuerRequestID != c.details {
			t.Errorf("%+v: got %+v", c, got)
		}
	}
}

func TestStatusIsRefused(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	if got := b.productionStatus("a%20b"); got.status != http.StatusBadRequest {
		t.Errorf("cardId: got %d %s", got.status, got.body)
	}
	b.token = "x"
	if got := b.productionStatus("card-1"); got.status != http.StatusUnauthorized {
		t.Errorf("token: got %d %s", got.status, got.body)
	}
	b.set(func(s *d1sim.Settings) { s.Paused = true })
	if got := b.productionStatus("card-1"); got.status != http.StatusServiceUnavailable {
		t.Errorf("paused: got %d %s", got.status, got.body)
	}
	if got := b.grant("x"); got.status != http.StatusServiceUnavailable {
		t.Errorf("token, paused: got %d %s", got.status, got.body)
	}
}

package d1sim_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

func TestManagementPort(t *testing.T) {
	t.Parallel()
	b := newBureau(t, fast)
	ctx, m := t.Context(), b.management
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	key, err := m.EncryptionKey(ctx)
	must(err)
	if want := b.sim.EncryptionKey(); key.KeyID != want.KeyID || !key.IsPublic() || key.Use != "enc" || key.Algorithm != "ECDH-ES" {
		t.Errorf("encryption key %+v", key)
	}

	must(m.Script(ctx, d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionReject}))
	must(m.Script(ctx, d1sim.Script{Kind: d1sim.KindStatus, Action: d1sim.ActionReject, Times: 3}))
	if got := b.order("card-1", b.thales("request-1")); got.status != http.StatusBadRequest {
		t.Errorf("scripted order: got %d", got.status)
	}
	scripts, err := m.Scripts(ctx)
	must(err)
	if len(scripts) != 1 || scripts[0].Times != 3 {
		t.Errorf("scripts %+v", scripts)
	}
	must(m.ClearScripts(ctx))

	operationID := b.accepted("card-1", b.thales("request-1"))
	must(m.Wait(ctx, d1sim.Condition{Cards: 1, Status: d1sim.CardShipped, Idle: true, Requests: 2, Kind: d1sim.KindProduction, CardID: "card-1"}, patience))
	cards, err := m.Cards(ctx)
	must(err)
	if len(cards) != 1 || cards[0].OperationID != operationID || cards[0].IssuerRequestID != "request-1" || cards[0].CardID != "card-1" ||
		cards[0].DistributionChannel != "THALES" || cards[0].Status != d1sim.CardShipped || cards[0].StartTime.IsZero() {
		t.Errorf("cards %+v", cards)
	}
	if of, err := m.CardsOf(ctx, issuerID); err != nil || !slices.Equal(of, cards) || cards[0].TrackingNumber == "" {
		t.Errorf("cards of the issuer %+v %v", of, err)
	}
	if none, err := m.CardsOf(ctx, lowercaseID); err != nil || none == nil || len(none) != 0 {
		t.Errorf("cards of another issuer %+v %v", none, err)
	}
	counts, err := m.CardCounts(ctx)
	must(err)
	if len(counts) != 1 || counts["request-1"] != 1 {
		t.Errorf("counts %v", counts)
	}
	history, err := m.History(ctx, d1sim.Filter{Kind: d1sim.KindProduction, IssuerRequestID: "request-1"})
	must(err)
	if len(history) != 2 || history[0].CardMade || !history[1].CardMade {
		t.Errorf("history %+v", history)
	}
	deliveries, err := m.Notifications(ctx)
	must(err)
	if len(deliveries) == 0 || deliveries[0].Operations[0].OperationID != operationID {
		t.Errorf("deliveries %+v", deliveries)
	}

	_, err = m.PatchSettings(ctx, map[string]any{"paused": true})
	must(err)
	must(m.Reset(ctx))
	b.accepted("card-1", b.thales("request-1")) // not paused any more, not a repeat; and the token has outlived the reset
	history, err = m.History(ctx, d1sim.Filter{})
	must(err)
	if len(history) != 1 {
		t.Errorf("history after the reset %+v", history)
	}
}

// A card can be put where production does not lead to by itself, and goes on from where it was.
func TestMove(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	ctx, m := t.Context(), b.management
	op := b.accepted("card-1", b.thales("request-1"))
	if err := m.Move(ctx, d1sim.Move{OperationID: op, Status: "CARD_PROD_ON_HOLD", Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	if got := b.operations("card-1")[0]; got.Details.Status != "CARD_PROD_ON_HOLD" || got.Details.Reason != "a test" || got.Status != d1sim.OperationPending {
		t.Errorf("moved to %+v", got)
	}
	b.wait(d1sim.Condition{Idle: true})
	if got := b.bank.statuses(); !slices.Equal(got, []string{d1sim.CardProdRequested, "CARD_PROD_ON_HOLD"}) {
		t.Errorf("notified of %v", got)
	}
	b.set(func(s *d1sim.Settings) {
		s.StopAt, s.StepInterval = d1sim.DataPrepared, d1sim.Duration(time.Millisecond)
	})
	b.wait(d1sim.Condition{Cards: 1, Status: d1sim.DataPrepared, Idle: true})

	if err := m.Move(ctx, d1sim.Move{OperationID: op, Status: "CARD_PROD_CANCELED", OperationStatus: d1sim.OperationFailed}); err != nil {
		t.Fatal(err)
	}
	b.set(func(s *d1sim.Settings) { s.StopAt = "" })
	b.wait(d1sim.Condition{Idle: true})
	if got := b.operations("card-1")[0]; got.Details.Status != "CARD_PROD_CANCELED" || got.Status != d1sim.OperationFailed || got.EndTime == nil {
		t.Errorf("a cancelled card went on to %+v", got)
	}
	for _, wrong := range []d1sim.Move{{OperationID: op}, {OperationID: "x", Status: "x"}} {
		if err := m.Move(ctx, wrong); err == nil {
			t.Errorf("%+v: accepted", wrong)
		}
	}
}

func TestWaitEnds(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	if err := b.management.Wait(t.Context(), d1sim.Condition{Cards: 1}, time.Millisecond); !errors.Is(err, d1sim.ErrNotMet) {
		t.Errorf("got %v, want ErrNotMet", err)
	}
	server := httptest.NewServer(b.sim.ManagementHandler())
	t.Cleanup(server.Close)
	for _, query := range []string{"cards=x", "idle=perhaps", "timeout=5", "card=1"} {
		resp, err := http.Get(server.URL + "/wait?" + query)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: got %d", query, resp.StatusCode)
		}
	}
}

func TestSettingsArePatched(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{})
	ctx, m := t.Context(), b.management
	set, err := m.Settings(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := d1sim.Settings{StepInterval: d1sim.Duration(300 * time.Millisecond), Repeat: "same", RequestIDPlace: "top", UnknownCard: "404",
		MaxPerCall: 10, RetryBackoff: d1sim.Duration(100 * time.Millisecond), TokenLifetime: d1sim.Duration(15 * time.Minute),
		ChangeUntil: d1sim.ChangeUntil{Cancel: "CARD_PROD_ONGOING", Accelerate: "CARD_PROD_DONE", Redirect: "CARD_PROD_DONE"},
		LateChange:  "notified", ChangeTold: "all", RepeatedChange: "again", CanceledStatus: "SUCCESSFUL"}
	if !reflect.DeepEqual(set, want) {
		t.Errorf("defaults %+v", set)
	}

	set, err = m.PatchSettings(ctx, map[string]any{"stepInterval": "20ms", "failAt": map[string]any{"status": "DATA_EXCEPTION"}})
	if err != nil || set.StepInterval != d1sim.Duration(20*time.Millisecond) || set.FailAt == nil || set.FailAt.OperationStatus != "FAILED" || set.MaxPerCall != 10 {
		t.Errorf("patched %+v, %v", set, err)
	}
	if set, err = m.PatchSettings(ctx, map[string]any{"failAt": nil}); err != nil || set.FailAt != nil {
		t.Errorf("patched %+v, %v", set, err)
	}
	if err := m.UpdateSettings(ctx, func(s *d1sim.Settings) { s.StatusLatestOnly = true }); err != nil || !b.sim.Settings().StatusLatestOnly {
		t.Errorf("updated %+v, %v", b.sim.Settings(), err)
	}

	before := b.sim.Settings()
	for _, patch := range []map[string]any{
		{"stepIntervall": "1s"}, {"stepInterval": 5}, {"stepInterval": "-1s"}, {"repeat": "twice"}, {"requestIdPlace": "x"},
		{"unknownCard": "x"}, {"maxPerCall": -1}, {"stopAt": "x"}, {"failAt": map[string]any{"status": "CARD_SHIPPED"}},
		{"faults": map[string]any{"lostBefore": 0.6, "lostAfter": 0.6}}, {"faults": map[string]any{"tokenErrors": -0.1}},
		{"faults": map[string]any{"lostNotifications": 1.1}}, {"faults": map[string]any{"lateBy": "-1s"}}, {"faults": map[string]any{"x": 1}},
		{"carrierStatuses": []string{"IN_TRANSIT", ""}}, {"cardOperations": []string{""}},
		{"changeUntil": map[string]any{"cancel": "x"}}, {"changeUntil": map[string]any{"deliver": "never"}}, {"lateChange": "x"},
		{"changeTold": "x"}, {"changeDelay": "-1s"}, {"repeatedChange": "conflict"}, {"canceledStatus": "PENDING"},
		{"tokenLifetime": "1ms"}, {"answerDelay": "-1s"}, {"failAt": map[string]any{"status": "DATA_EXCEPTION", "operationStatus": "x"}},
	} {
		if _, err := m.PatchSettings(ctx, patch); err == nil {
			t.Errorf("%v: accepted", patch)
		}
	}
	if !reflect.DeepEqual(b.sim.Settings(), before) {
		t.Errorf("refused patches changed %+v to %+v", before, b.sim.Settings())
	}
}

func TestNewTellsAllFaults(t *testing.T) {
	t.Parallel()
	_, err := d1sim.New(d1sim.Config{
		Issuers:     []d1sim.Issuer{{ID: "short"}, {ID: issuerID, PathStyle: "x"}, {ID: lowercaseID}, {ID: lowercaseID}},
		Aggregators: []d1sim.Aggregator{{ID: "a", IssuerIDs: []string{"bank000009"}}},
		Settings:    d1sim.Settings{Repeat: "x"},
	})
	for _, want := range []string{"short", "path style", "twice", "bank000009", "repeat"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: says nothing of %q", err, want)
		}
	}
}

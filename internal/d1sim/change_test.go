package d1sim_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

const changePath = "/banking/v1/issuers/" + issuerID + "/physicalCards/%s/operations:change"

// change sends a change.
func (b *bureau) change(cardID string, body map[string]any) answer {
	b.t.Helper()
	return b.send(http.MethodPost, fmt.Sprintf(changePath, cardID), toJSON(b.t, body), b.header())
}

// changed sends a change that must be taken and returns its operationId.
func (b *bureau) changed(cardID string, body map[string]any) string {
	b.t.Helper()
	got := b.change(cardID, body)
	if got.status != http.StatusAccepted {
		b.t.Fatalf("change: %d %s %v", got.status, got.body, got.err)
	}
	return got.json(b.t)["operationId"].(string)
}

func cancel() map[string]any {
	return map[string]any{"type": "CANCEL", "issuerRequestId": "request-1"}
}

func redirect(city string) map[string]any {
	return map[string]any{"type": "REDIRECT", "issuerRequestId": "request-1", "newDeliveryAddress": map[string]any{
		"line1": "2 Other Street", "zipCode": "2000", "city": city, "countryCode": "BE",
	}}
}

// updates lists what was told of changes: the operation's status.
func (b *bank) updates() (list []d1sim.Operation) {
	for _, op := range slices.Concat(b.received()...) {
		if op.Operation == "UPDATE_ORDER" {
			list = append(list, op)
		}
	}
	return list
}

func TestChangeIsDone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body map[string]any
		want func(d1sim.Card) bool
		told []string // details.status of all notifications
	}{
		"cancel": {cancel(), func(c d1sim.Card) bool {
			return c.Status == "CARD_PROD_CANCELED" && c.OperationStatus == "SUCCESSFUL"
		}, []string{"CARD_PROD_REQUESTED", "", "CARD_PROD_CANCELED"}},
		"redirect": {redirect("Ghent"), func(c d1sim.Card) bool {
			return c.DeliveryCity == "Ghent" && c.Status == "CARD_PROD_REQUESTED" && !c.Accelerated
		}, []string{"CARD_PROD_REQUESTED", ""}},
		"accelerate": {map[string]any{"type": "ACCELERATE"}, func(c d1sim.Card) bool {
			return c.DeliveryCity == "Brussels" && c.Accelerated
		}, []string{"CARD_PROD_REQUESTED", ""}},
		"both": {func() map[string]any {
			both := redirect("Ghent")
			both["type"] = "ACCELERATE_AND_REDIRECT"
			return both
		}(), func(c d1sim.Card) bool { return c.DeliveryCity == "Ghent" && c.Accelerated }, []string{"CARD_PROD_REQUESTED", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBureau(t, still)
			order := b.accepted("card-1", b.thales("request-1"))
			id := b.changed("card-1", c.body)
			b.wait(d1sim.Condition{Idle: true})

			if card := b.sim.Cards()[0]; !c.want(card) || id == order {
				t.Errorf("card %+v", card)
			}
			if got := b.bank.statuses(); !slices.Equal(got, c.told) {
				t.Errorf("told %v, want %v", got, c.told)
			}
			updates := b.bank.updates()
			if len(updates) != 1 || updates[0].OperationID != id || updates[0].Status != "SUCCESSFUL" || updates[0].CardID != "card-1" ||
				updates[0].IssuerRequestID != "request-1" || updates[0].EndTime == nil || updates[0].StartTime.IsZero() || updates[0].ErrorCode != "" {
				t.Errorf("told %+v", updates)
			}
			changes, err := b.management.Changes(t.Context())
			if err != nil || len(changes) != 1 || changes[0].OperationID != id || changes[0].ProductionOperation != order ||
				changes[0].Type != c.body["type"] || changes[0].Status != "SUCCESSFUL" || changes[0].IssuerRequestID != "request-1" {
				t.Errorf("changes %+v, %v", changes, err)
			}
			record := b.sim.History(d1sim.Filter{Kind: d1sim.KindChange})
			if len(record) != 1 || record[0].Change != c.body["type"] || record[0].OperationID != id || record[0].CardMade {
				t.Errorf("history %+v", record)
			}
		})
	}
}

// An accelerated card overtakes the others, and goes by express.
func TestAcceleratedCardOvertakes(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{StepInterval: d1sim.Duration(time.Hour)})
	b.accepted("card-1", b.thales("request-1"))
	b.accepted("card-2", b.thales("request-2"))
	b.changed("card-2", map[string]any{"type": "ACCELERATE"})
	b.set(func(s *d1sim.Settings) { s.StepInterval = d1sim.Duration(200 * time.Millisecond) })
	b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped})
	if cards := b.sim.Cards(); cards[0].Status == d1sim.CardShipped {
		t.Errorf("cards %+v", cards)
	}
	b.wait(d1sim.Condition{Idle: true})
	for _, op := range slices.Concat(b.bank.received()...) {
		if s := op.Details.Shipment; s != nil && (s.Carrier == "chronopost-france") != (op.CardID == "card-2") {
			t.Errorf("%s goes by %s", op.CardID, s.Carrier)
		}
	}
}

func TestChangeIsRefusedByStage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set    func(*d1sim.Settings)
		body   map[string]any
		failed bool
	}{
		"cancel, just in time":   {func(s *d1sim.Settings) { s.StopAt = d1sim.CardProdOngoing }, cancel(), false},
		"cancel, too late":       {func(s *d1sim.Settings) { s.StopAt = d1sim.CardProdDone }, cancel(), true},
		"cancel, shipped":        {func(s *d1sim.Settings) { s.ChangeUntil.Cancel = d1sim.CardShipped }, cancel(), true},
		"redirect, just in time": {func(s *d1sim.Settings) { s.StopAt = d1sim.CardProdDone }, redirect("Ghent"), false},
		"redirect, earlier":      {func(s *d1sim.Settings) { s.StopAt, s.ChangeUntil.Redirect = d1sim.CardProdReady, d1sim.DataPrepared }, redirect("Ghent"), true},
		"never":                  {func(s *d1sim.Settings) { s.StopAt, s.ChangeUntil.Accelerate = d1sim.CardProdRequested, d1sim.Never }, map[string]any{"type": "ACCELERATE"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := fast
			c.set(&set)
			b := newBureau(t, set)
			b.accepted("card-1", b.thales("request-1"))
			b.wait(d1sim.Condition{Idle: true})
			before := b.sim.Cards()[0]
			id := b.changed("card-1", c.body)
			b.wait(d1sim.Condition{Idle: true})
			updates := b.bank.updates()
			if len(updates) != 1 || updates[0].OperationID != id || (updates[0].Status == "FAILED") != c.failed || (updates[0].ErrorCode != "") != c.failed {
				t.Errorf("told %+v", updates)
			}
			if after := b.sim.Cards()[0]; (after == before) != c.failed {
				t.Errorf("card %+v, before %+v", after, before)
			}

			// By the other setting it is refused at once.
			b.set(func(s *d1sim.Settings) { s.LateChange = d1sim.LateChangeRefused })
			if got := b.change("card-1", c.body); c.failed && (got.status != http.StatusConflict || got.json(t)["errorCode"] == "" || len(b.sim.Changes()) != 1) {
				t.Errorf("at once: %d %s", got.status, got.body)
			}
		})
	}
}

func TestChangeTakesItsTime(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, ChangeDelay: d1sim.Duration(time.Hour), ChangePending: true})
	b.accepted("card-1", b.thales("request-1"))
	b.changed("card-1", cancel())
	b.wait(d1sim.Condition{Delivered: true})
	if updates := b.bank.updates(); len(updates) != 1 || updates[0].Status != "PENDING" || updates[0].EndTime != nil {
		t.Errorf("told %+v", updates)
	}

	// It is the step at the end of that time that counts.
	b = newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, ChangeDelay: d1sim.Duration(200 * time.Millisecond), LateChange: d1sim.LateChangeRefused})
	b.accepted("card-1", b.thales("request-1"))
	b.changed("card-1", redirect("Ghent"))
	b.set(func(s *d1sim.Settings) { s.ChangeUntil.Redirect = d1sim.Never })
	b.wait(d1sim.Condition{Idle: true})
	if updates := b.bank.updates(); len(updates) != 1 || updates[0].Status != "FAILED" {
		t.Errorf("told %+v", updates)
	}
}

func TestWhatIsToldOfAChange(t *testing.T) {
	t.Parallel()
	for told, want := range map[string][]string{
		d1sim.ToldAll: {"CARD_PROD_REQUESTED", "", "CARD_PROD_CANCELED"}, d1sim.ToldChange: {"CARD_PROD_REQUESTED", ""},
		d1sim.ToldCard: {"CARD_PROD_REQUESTED", "CARD_PROD_CANCELED"}, d1sim.ToldNone: {"CARD_PROD_REQUESTED"},
	} {
		set := still
		set.ChangeTold, set.ChangesWithoutRequestIDs, set.CanceledStatus = told, true, d1sim.OperationFailed
		b := newBureau(t, set)
		b.accepted("card-1", b.thales("request-1"))
		b.changed("card-1", cancel())
		b.wait(d1sim.Condition{Idle: true})
		if got := b.bank.statuses(); !slices.Equal(got, want) {
			t.Errorf("%s: told %v, want %v", told, got, want)
		}
		for _, op := range slices.Concat(b.bank.received()...) {
			if without := op.IssuerRequestID == ""; without != (op.Operation == "UPDATE_ORDER") {
				t.Errorf("%s: told %+v", told, op)
			}
		}
		if card := b.sim.Cards()[0]; card.Status != "CARD_PROD_CANCELED" || card.OperationStatus != "FAILED" {
			t.Errorf("%s: card %+v", told, card)
		}
	}
}

func TestRepeatedChange(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.accepted("card-1", b.thales("request-1"))
	first := b.changed("card-1", redirect("Ghent"))
	if again := b.changed("card-1", redirect("Ghent")); again == first || len(b.sim.Changes()) != 2 {
		t.Errorf("again: %s", again)
	}
	b.set(func(s *d1sim.Settings) { s.RepeatedChange = d1sim.RepeatSame })
	if again := b.changed("card-1", redirect("Ghent")); again != first || len(b.sim.Changes()) != 2 {
		t.Errorf("the same: %s, want %s", again, first)
	}
	if other := b.changed("card-1", redirect("Liege")); other == first {
		t.Error("another address is another change")
	}
}

func TestStatusWithChanges(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	order := b.accepted("card-1", b.thales("request-1"))
	id := b.changed("card-1", cancel())
	if got := b.operations("card-1"); len(got) != 1 || got[0].OperationID != order {
		t.Errorf("shown %+v", got)
	}
	b.set(func(s *d1sim.Settings) { s.StatusWithChanges = true })
	if got := b.operations("card-1"); len(got) != 2 || got[1].OperationID != id || got[1].Operation != "UPDATE_ORDER" {
		t.Errorf("shown %+v", got)
	}
	b.set(func(s *d1sim.Settings) { s.StatusLatestOnly = true })
	if got := b.operations("card-1"); len(got) != 1 || got[0].OperationID != id {
		t.Errorf("the latest: %+v", got)
	}
}

func TestChangeIsRefused(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.accepted("card-1", b.thales("request-1"))
	with := func(body map[string]any, name string, value any) map[string]any {
		if body[name] = value; value == nil {
			delete(body, name)
		}
		return body
	}
	address := func(name string, value any) map[string]any {
		body := redirect("Ghent")
		with(body["newDeliveryAddress"].(map[string]any), name, value)
		return body
	}
	const (
		format = "FIELD_INVALID_FORMAT"
		value  = "FIELD_INVALID_VALUE"
	)
	for i, c := range []struct {
		body   map[string]any
		code   string
		field  string // that the error text begins with
		cardID string
		status int
	}{
		{with(cancel(), "type", nil), value, "type", "card-1", 400},
		{with(cancel(), "type", "DELETE"), value, "type", "card-1", 400},
		{with(cancel(), "type", 1), format, "type", "card-1", 400},
		{with(cancel(), "issuerRequestId", "a b"), format, "issuerRequestId", "card-1", 400},
		{with(cancel(), "reason", "x"), value, "reason", "card-1", 400},
		{with(cancel(), "newDeliveryAddress", redirect("Ghent")["newDeliveryAddress"]), value, "newDeliveryAddress", "card-1", 400},
		{with(redirect(""), "newDeliveryAddress", nil), value, "newDeliveryAddress", "card-1", 400},
		{redirect(""), format, "newDeliveryAddress.city", "card-1", 400},
		{address("countryCode", "XX"), value, "newDeliveryAddress.countryCode", "card-1", 400},
		{address("mobilePhoneNumber", "0470"), format, "newDeliveryAddress.mobilePhoneNumber", "card-1", 400},
		{address("floor", "7"), value, "newDeliveryAddress.floor", "card-1", 400},
		{cancel(), format, "cardId", "card.1", 400},
		{cancel(), "", "no such order", "card-2", 404},
		{with(cancel(), "issuerRequestId", "request-2"), "", "no such order", "card-1", 404},
	} {
		got := b.change(c.cardID, c.body)
		text, _ := got.json(t)["error"].(string)
		code, _ := got.json(t)["errorCode"].(string)
		if got.status != c.status || code != c.code || !strings.HasPrefix(text, c.field) {
			t.Errorf("%d: got %d %s, want %d %s of %s", i, got.status, got.body, c.status, c.code, c.field)
		}
	}
	if got := b.send(http.MethodPost, fmt.Sprintf(changePath, "card-1"), toJSON(t, cancel()), http.Header{"Content-Type": {"application/json"}}); got.status != http.StatusUnauthorized {
		t.Errorf("without a token: %d", got.status)
	}
	if got := b.send(http.MethodPost, fmt.Sprintf(changePath, "card-1"), "[]", b.header()); got.status != http.StatusBadRequest {
		t.Errorf("a list: %d", got.status)
	}
	lowercase := "/banking/v1/issuers/" + issuerID + "/physicalcards/card-1/operations/change"
	if got := b.send(http.MethodPost, lowercase, toJSON(t, cancel()), b.header()); got.status != http.StatusNotFound {
		t.Errorf("the other path style: %d", got.status)
	}
	if changes := b.sim.Changes(); len(changes) != 0 {
		t.Errorf("changes %+v", changes)
	}
	if card := b.sim.Cards()[0]; card.Status != d1sim.CardProdRequested {
		t.Errorf("card %+v", card)
	}
}

func TestChangeInLowercase(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.token = b.fetchToken(b.claims(lowercaseID))
	cards := "/banking/v1/issuers/" + lowercaseID + "/physicalcards/card-1/operations/"
	if got := b.send(http.MethodPost, cards+"production", toJSON(t, b.thales("request-1")), b.header()); got.status != http.StatusAccepted {
		t.Fatalf("order: %d %s", got.status, got.body)
	}
	if got := b.send(http.MethodPost, cards+"change", toJSON(t, cancel()), b.header()); got.status != http.StatusAccepted {
		t.Errorf("change: %d %s", got.status, got.body)
	}
}

// Scripts and faults meet changes as they meet orders.
func TestChangeMeetsTrouble(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script  d1sim.Script
		status  int // 0: the connection is cut
		changes int
	}{
		"lost-before":     {d1sim.Script{Action: d1sim.ActionLostBefore}, 0, 0},
		"lost-after":      {d1sim.Script{Action: d1sim.ActionLostAfter, IssuerRequestID: "request-1"}, 0, 1},
		"error-after":     {d1sim.Script{Action: d1sim.ActionErrorAfter, CardID: "card-1"}, 500, 1},
		"no-operation-id": {d1sim.Script{Action: d1sim.ActionNoOperationID}, 202, 1},
		"answer":          {d1sim.Script{Action: d1sim.ActionAnswer, Status: 429}, 429, 0},
		"reject":          {d1sim.Script{Action: d1sim.ActionReject}, 400, 0},
	} {
		b := newBureau(t, still)
		b.accepted("card-1", b.thales("request-1"))
		c.script.Kind = d1sim.KindChange
		b.script(c.script)
		if got := b.change("card-1", cancel()); got.status != c.status || (got.err != nil) != (c.status == 0) {
			t.Errorf("%s: %d %s %v", name, got.status, got.body, got.err)
		}
		if n := len(b.sim.Changes()); n != c.changes {
			t.Errorf("%s: %d changes, want %d", name, n, c.changes)
		}
	}

	b := newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, Faults: &d1sim.Faults{LostAfter: 1, ProductionOnly: true}})
	b.order("card-1", b.thales("request-1"))
	if got := b.change("card-1", cancel()); got.status != http.StatusAccepted {
		t.Errorf("faults of production only: %d %v", got.status, got.err)
	}
	b.set(func(s *d1sim.Settings) { s.Faults.ProductionOnly = false })
	if got := b.change("card-1", cancel()); got.err == nil || len(b.sim.Changes()) != 2 {
		t.Errorf("every answer gets lost: %d", got.status)
	}
}

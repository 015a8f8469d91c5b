package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// notify sends a notification as D1 would, with a token of ours.
func (b *bank) notify(content []byte) int {
	b.t.Helper()
	status, err := b.env.Management.SendNotification(b.t.Context(), local.IssuerID, content)
	if err != nil {
		b.t.Fatal(err)
	}
	return status
}

// token fetches a token as D1 does.
func (b *bank) token() string {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost,
		b.env.Ready.NotificationsURL+"/authz/d1/v1/oauth2/token", strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	credentials := b.env.ServiceConfig().Issuers[0].Notifications
	r.SetBasicAuth(credentials.ClientID, credentials.ClientSecret.Reveal())
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		b.t.Fatal(err)
	}
	return answer.AccessToken
}

// Doubled and reversed notifications lead to the same end.
func TestDuplicateAndReversedNotificationsChangeNothing(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.HoldNotifications, sim.ReverseNotifications, sim.DuplicateNotifications = true, true, true
	b := newBank(t, sim)
	id := b.place(b.thales("muddle"))
	b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped})
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
	b.wait(d1sim.Condition{Idle: true})
	a := b.await(id, "SHIPPED")
	if len(a.view.Attention) > 0 || len(a.view.Shipments) != 1 {
		t.Errorf("attention %v, shipments %v", a.view.Attention, a.view.Shipments)
	}
	b.eventually("every step was seen twice", func() bool {
		return query[int](b, `SELECT count(*) FROM notifications WHERE times_seen = 2 AND outcome = 'applied'`) == 6
	})
	b.noGaps(id)

	// The same again, much later.
	before := b.get(id)
	b.notify(mustJSON(t, body{"operations": []body{{
		"operationId": a.view.OperationID, "operation": "PRODUCE", "status": "PENDING", "cardId": "card-muddle",
		"startTime": "2026-01-01T00:00:00Z", "details": body{"status": "CARD_PROD_READY"},
	}}}))
	if after := b.get(id); after.view.Status != "SHIPPED" || after.view.Version != before.view.Version {
		t.Errorf("a late READY made it %s, version %d", after.view.Status, after.view.Version)
	}
}

// A notification may overtake the 202 of its own order.
func TestNotificationBeforeItsOwn202(t *testing.T) {
	t.Parallel()
	for name, without := range map[string]bool{"with our id": false, "without it": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.NotifyWithoutRequestIDs = without
			b := newBank(t, sim)
			b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionDelay, Delay: d1sim.Duration(1e9)})
			id := b.place(b.thales("early"))
			b.await(id, "SHIPPED") // well before the answer
			b.eventually("the answer is stored as a fact", func() bool {
				return query[int](b, `SELECT count(*) FROM attempts WHERE outcome = 'taken'`) == 1
			})
			if a := b.get(id); a.view.Status != "SHIPPED" || len(a.view.Attention) > 0 {
				t.Errorf("status %s, attention %v", a.view.Status, a.view.Attention)
			}
			b.oneCard("request-early")
			b.noGaps(id)
		})
	}
}

// What finds no order is parked, and found when the order's operation becomes known.
func TestParkedNotificationFindsItsOrderLater(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	// D1 speaks of an operation, with no id of ours and no start by which the card could tell.
	id := b.place(b.thales("parked"))
	b.await(id, "SUBMITTED")
	content := func(operation string) []byte {
		return mustJSON(t, body{"operations": []body{{
			"operationId": operation, "operation": "PRODUCE", "status": "PENDING", "cardId": "card-parked",
			"details": body{"status": "CARD_PROD_ONGOING"},
		}}})
	}
	if status := b.notify(content("of-nobody")); status != http.StatusNoContent {
		t.Errorf("unknown operation: %d", status)
	}
	if n := query[int](b, `SELECT count(*) FROM notifications WHERE outcome = 'parked'`); n != 1 {
		t.Fatalf("%d are parked, want 1", n)
	}
	// The operation becomes known as another order's.
	other := b.place(b.thales("other"))
	b.await(other, "SUBMITTED")
	conn := query[int64](b, `WITH o AS (UPDATE operations SET operation_id = 'of-nobody' WHERE order_id = $1 RETURNING 1) SELECT count(*) FROM o`, other)
	if conn != 1 {
		t.Fatal("the operation was not renamed")
	}
	b.eventually("the parked notification is applied", func() bool {
		return query[int](b, `SELECT count(*) FROM notifications WHERE outcome = 'applied' AND order_id = $1`, other) == 1
	})
}

// Whatever D1 sends is kept and answered 204, and moves no order on a guess.
func TestUnknownContentIsKept(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	id := b.place(b.thales("calm"))
	operation := b.await(id, "SUBMITTED").view.OperationID
	for i, content := range []string{
		`{"operations":[{"operationId":"x","operation":"PRODUCE","status":"PENDING","cardId":"nobody","issuerRequestId":"nobody"}]}`,
		`{"operations":[{"operationId":"y","operation":"TELEPORT","status":"PENDING","cardId":"card-calm"}]}`,
		fmt.Sprintf(`{"operations":[{"operationId":%q,"operation":"PRODUCE","status":"PENDING","cardId":"card-calm","details":{"status":"CARD_ON_THE_MOON"}}]}`, operation),
		`{"operations":[]}`, `{"operations":[1,"two",null,{"operation":3,"cardId":"\u0000"}]}`, `{"operations":"none"}`,
		`[]`, `"text"`, `null`, `{}`, `3`,
	} {
		if status := b.notify([]byte(content)); status != http.StatusNoContent {
			t.Errorf("content %d was answered %d", i, status)
		}
	}
	a := b.get(id)
	if a.view.Status != "SUBMITTED" {
		t.Errorf("the order moved to %s", a.view.Status)
	}
	if len(a.view.Attention) != 1 || a.view.Attention[0].Code != "unknown-status" {
		t.Errorf("attention %v, want unknown-status", a.view.Attention)
	}
	if n := query[int](b, `SELECT count(*) FROM notifications`); n != 12 { // null came twice
		t.Errorf("%d notifications are stored, want 12", n)
	}
}

// A second operation for the same order is a second card: seen at once, and the
// status stays the first one's.
func TestSecondCardIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	id := b.place(b.thales("double"))
	b.await(id, "SUBMITTED")
	b.notify(mustJSON(t, body{"operations": []body{{
		"operationId": "the-second", "operation": "PRODUCE", "status": "SUCCESSFUL", "cardId": "card-double",
		"issuerRequestId": "request-double", "details": body{"status": "CARD_SHIPPED"},
	}}}))
	a := b.get(id)
	if a.view.Status != "SUBMITTED" || len(a.view.Attention) != 1 || a.view.Attention[0].Code != "second-card" {
		t.Errorf("status %s, attention %v", a.view.Status, a.view.Attention)
	}
	b.noGaps(id)
}

// Who may notify, and what is no notification.
func TestNotificationRefusals(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	if a := b.tell(local.IssuerID, nil, "{}"); a.status != http.StatusUnauthorized || a.text != "" {
		t.Errorf("without a token: %d %q", a.status, a.text)
	}
	if a := b.tell(local.IssuerID, bearer(b.env.Ready.Token), "{}"); a.status != http.StatusUnauthorized {
		t.Errorf("with core banking's token: %d", a.status)
	}
	if a := b.tell("NOBODY0001", nil, "{}"); a.status != http.StatusNotFound || !strings.Contains(a.text, `"error"`) {
		t.Errorf("another issuer: %d %q", a.status, a.text)
	}
	for _, content := range []string{"", "{", "not JSON", `{"operations":[}`, `{} {}`} {
		if status := b.notify([]byte(content)); status != http.StatusBadRequest {
			t.Errorf("%q was answered %d", content, status)
		}
	}
	if a := b.tell(local.IssuerID, bearer(b.token()), strings.Repeat("x", 33<<20)); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("33 MiB were answered %d", a.status)
	}
	if n := query[int](b, `SELECT count(*) FROM notifications`); n != 0 {
		t.Errorf("%d were stored", n)
	}
}

// One poisoned element harms none of its neighbours.
func TestPoisonedElementHarmsNoNeighbour(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	id := b.place(b.thales("neighbour"))
	operation := b.await(id, "SUBMITTED").view.OperationID
	good := fmt.Sprintf(`{"operationId":%q,"operation":"PRODUCE","status":"PENDING","cardId":"card-neighbour","details":{"status":"CARD_PROD_READY"}}`, operation)
	poison := `{"operationId":"\u0000","operation":"PRODUCE","cardId":{"a":1},"issuerRequestId":[],"startTime":"9999999-99-99","details":{"shipment":{"trackingNumber":"\u0000\ud800"}}}`
	if status := b.notify([]byte(`{"operations":[` + poison + `,` + good + `,` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `]}`)); status != http.StatusNoContent {
		t.Errorf("answered %d", status)
	}
	b.await(id, "READY")
}

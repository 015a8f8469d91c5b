package app_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"cardorder/client"
)

// changeOf posts a change of an order.
func (b *bank) changeOf(id string, change body, header http.Header) answer {
	b.t.Helper()
	content, err := json.Marshal(change)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(http.MethodPost, orders+"/"+id+"/changes", header, content)
}

func key(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }

// What the calls of changes answer, whatever D1 does.
func TestChangeCalls(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	shipped := b.place(b.thales("shipped"))
	b.await(shipped, "SHIPPED")
	b.do(http.MethodPost, "/v1/issuers/"+b.env.Ready.IssuerID+"/lanes/d1/pause", nil, []byte(`{"reason":"a test"}`))
	id := b.place(b.thales("waiting"))

	type want struct {
		status int
		kind   string // of the problem, or of the change
		faults string
	}
	check := func(name string, a answer, w want) {
		t.Helper()
		var faults []string
		for _, f := range a.view.Errors {
			faults = append(faults, f.Header+f.Pointer+" "+f.Code)
		}
		slices.Sort(faults)
		got := want{a.status, strings.TrimPrefix(a.view.Type, "urn:cardorder:problem:"), strings.Join(faults, ", ")}
		if got != w {
			t.Errorf("%s: %+v, want %+v", name, got, w)
		}
		if strings.Contains(a.text, "New Street") || strings.Contains(a.text, testPAN) {
			t.Errorf("%s: the answer tells the address: %s", name, a.text)
		}
	}
	cancel := body{"type": "CANCEL"}
	check("no key", b.changeOf(id, cancel, nil), want{400, "invalid-request", "Idempotency-Key required"})
	check("all that is wrong", b.changeOf(id, body{
		"type": "REDIRECT", "why": "x", "newDeliveryAddress": body{"line1": "9 New Street", "zipCode": "1", "city": testPAN, "countryCode": "QQ"},
	}, http.Header{"If-Match": {"3"}}), want{400, "invalid-request",
		"/newDeliveryAddress/city card-number, /newDeliveryAddress/countryCode invalid-value, /why unknown-member, Idempotency-Key required, If-Match invalid-format"})
	check("a card number as its key", b.changeOf(id, cancel, key(testPAN)), want{400, "invalid-request", "Idempotency-Key card-number"})
	check("no JSON", b.do(http.MethodPost, orders+"/"+id+"/changes", http.Header{"Idempotency-Key": {"k"}, "Content-Type": {"text/plain"}}, []byte("x")),
		want{415, "unsupported-media-type", ""})
	check("nothing", b.do(http.MethodPost, orders+"/"+id+"/changes", key("k"), []byte("")), want{400, "invalid-request", " invalid-json"})
	check("of no order", b.changeOf(uuid.NewString(), cancel, key("k")), want{404, "unknown-order", ""})
	check("of what is no id", b.changeOf("x", cancel, key("k")), want{404, "unknown-order", ""})
	check("of a card that has left", b.changeOf(shipped, cancel, key("k")), want{409, "already-shipped", ""})
	check("of another version", b.changeOf(id, cancel, http.Header{"Idempotency-Key": {"k"}, "If-Match": {`"7"`}}), want{412, "version-mismatch", ""})
	check("of none of several versions", b.changeOf(id, cancel, http.Header{"Idempotency-Key": {"k"}, "If-Match": {`"7", W/"1"`}}), want{412, "version-mismatch", ""})

	faster := b.changeOf(id, body{"type": "ACCELERATE", "note": "before the holidays"}, http.Header{"Idempotency-Key": {"faster"}, "If-Match": {`"1"`}})
	check("accelerate", faster, want{201, "ACCELERATE", ""})
	pending := b.changeOf(id, body{"type": "ACCELERATE"}, key("again"))
	check("accelerate twice", pending, want{409, "change-pending", ""})
	if !strings.Contains(pending.text, `"conflictingChange":"`+faster.view.ID) {
		t.Errorf("it does not name the other: %s", pending.text)
	}
	again := b.changeOf(id, body{"note": "before the holidays", "type": "ACCELERATE"}, http.Header{"Idempotency-Key": {"faster"}, "If-Match": {`"1", "x"`}})
	check("a repetition", again, want{200, "ACCELERATE", ""})
	if again.view.ID != faster.view.ID || again.header.Get("Idempotent-Replayed") != "true" || again.header.Get("Location") != faster.header.Get("Location") {
		t.Errorf("a repetition: %v %s", again.header, again.text)
	}
	check("the key with other content", b.changeOf(id, cancel, key("faster")), want{422, "idempotency-conflict", ""})
	check("redirect", b.changeOf(id, body{
		"type": "REDIRECT", "newDeliveryAddress": body{"line1": "9 New Street", "zipCode": "1", "city": "Lyon", "countryCode": "FR"},
	}, key("redirect")), want{201, "REDIRECT", ""})
	check("cancel", b.changeOf(id, cancel, key("cancel")), want{201, "CANCEL", ""})
	check("cancel twice", b.changeOf(id, cancel, key("cancel-2")), want{409, "not-changeable", ""})

	if a := b.do(http.MethodGet, faster.header.Get("Location"), nil, nil); a.status != 200 || a.view.ID != faster.view.ID {
		t.Errorf("at its location: %d %s", a.status, a.text)
	}
	check("no such change", b.do(http.MethodGet, orders+"/"+id+"/changes/"+uuid.NewString(), nil, nil), want{404, "unknown-change", ""})
	check("a change of another order", b.do(http.MethodGet, orders+"/"+shipped+"/changes/"+faster.view.ID, nil, nil), want{404, "unknown-change", ""})
	check("a change of no order", b.do(http.MethodGet, orders+"/"+uuid.NewString()+"/changes/"+faster.view.ID, nil, nil), want{404, "unknown-order", ""})
	check("what is no id", b.do(http.MethodGet, orders+"/"+id+"/changes/x", nil, nil), want{404, "unknown-change", ""})
	check("changes of no order", b.do(http.MethodGet, orders+"/"+uuid.NewString()+"/changes", nil, nil), want{404, "unknown-order", ""})
	check("a wrong limit", b.do(http.MethodGet, orders+"/"+id+"/changes?limit=0", nil, nil), want{400, "invalid-request", " invalid-value"})
	if strings.Contains(b.logs.String(), "New Street") {
		t.Error("the log has the address")
	}

	// The same by the client.
	c := b.client()
	var states []string
	for cursor := ""; ; {
		page, err := c.Changes(t.Context(), id, client.ChangeFilter{Limit: 2, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range page.Data {
			states = append(states, string(change.Type)+" "+string(change.State)+" "+change.Reason)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	if got := strings.Join(states, ", "); got != "CANCEL ACCEPTED before-dispatch, REDIRECT ACCEPTED before-dispatch, ACCELERATE REFUSED order-ended" {
		t.Errorf("the changes are %s", got)
	}
	id = b.place(b.thales("by-client"))
	address := client.Address{Line1: "9 New Street", ZipCode: "1", City: "Lyon", CountryCode: "FR"}
	placed, err := c.ChangeOrder(t.Context(), id, client.NewChange{Type: client.ChangeRedirect, NewDeliveryAddress: &address, Version: 1})
	if err != nil || placed.Replayed || placed.State != client.ChangeAccepted || placed.IdempotencyKey == "" {
		t.Fatalf("%+v, %v", placed, err)
	}
	repeated, err := c.ChangeOrder(t.Context(), id, client.NewChange{Type: client.ChangeRedirect, NewDeliveryAddress: &address, IdempotencyKey: placed.IdempotencyKey})
	if err != nil || !repeated.Replayed || repeated.ID != placed.ID {
		t.Errorf("%+v, %v", repeated, err)
	}
	read, err := c.Change(t.Context(), id, placed.ID)
	if err != nil || *read != placed.Change {
		t.Errorf("%+v, %v; want %+v", read, err, placed.Change)
	}
	_, err = c.ChangeOrder(t.Context(), shipped, client.NewChange{Type: client.ChangeCancel})
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != client.ProblemAlreadyShipped {
		t.Errorf("after the shipping: %v", err)
	}
	_, err = c.ChangeOrder(t.Context(), id, client.NewChange{Type: client.ChangeCancel, IdempotencyKey: placed.IdempotencyKey})
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != client.ProblemIdempotencyConflict || p.ConflictingChange != placed.ID {
		t.Errorf("the key again: %v", err)
	}
}

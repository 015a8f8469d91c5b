package app_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/config"
	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
)

// What people do with orders: each test goes through the API on one side and the simulator
// on the other.

func (b *bank) timeline(id string) []client.TimelineEntry {
	b.t.Helper()
	list, err := b.client().Timeline(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// did lists what people did with an order: "hold-requested by local".
func (b *bank) did(id string) (list []string) {
	b.t.Helper()
	for _, e := range b.timeline(id) {
		switch {
		case e.Note != nil:
			list = append(list, e.Note.Author+": "+e.Note.Text)
		case e.Event != nil && e.Event.Cause == "request":
			list = append(list, e.Event.Type)
		}
	}
	return list
}

// must ends the test when a call failed.
func must[T any](t *testing.T, what string) func(*T, error) *T {
	t.Helper()
	return func(v *T, err error) *T {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return v
	}
}

// A held order is never sent, and a released one is.
func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	c := b.client()
	if _, err := c.PauseLane(t.Context(), client.LaneD1, "so that nothing is sent yet"); err != nil {
		t.Fatal(err)
	}
	id := b.place(b.thales("held"))
	free := b.place(b.thales("free"))
	held := must[client.Order](t, "holding")(c.Hold(t.Context(), id, client.HoldRequest{Reason: "the customer called"}))
	if held.Status != client.StatusHeld || held.HoldPending || held.Hold == nil || held.Hold.Reason != "person" {
		t.Errorf("held: %+v", held)
	}
	if _, err := c.Hold(t.Context(), id, client.HoldRequest{Version: held.Version - 1}); !isProblem(err, client.ProblemVersionMismatch) {
		t.Errorf("of another version: %v", err)
	}
	if _, err := c.Release(t.Context(), free, client.ReleaseRequest{}); !isProblem(err, client.ProblemNotHeld) {
		t.Errorf("released what is not held: %v", err)
	}
	if _, err := c.ResumeLane(t.Context(), client.LaneD1); err != nil {
		t.Fatal(err)
	}
	b.await(free, "SHIPPED") // the lane works
	if calls := b.calls("card-held"); len(calls) != 0 {
		t.Errorf("D1 heard of a held order: %v", calls)
	}
	if _, err := c.Hold(t.Context(), free, client.HoldRequest{}); !isProblem(err, client.ProblemNotHoldable) {
		t.Errorf("held what D1 has: %v", err)
	}
	must[client.Order](t, "releasing")(c.Release(t.Context(), id, client.ReleaseRequest{Reason: "all is well", Version: held.Version}))
	b.await(id, "SHIPPED")
	if got, want := b.did(id), []string{"accepted", "hold-requested", "release-requested"}; !slices.Equal(got, want) {
		t.Errorf("done: %v", got)
	}
	b.noGaps(id)
}

// A hold that comes while D1 is being called comes true or not, as D1's answer says.
func TestHoldWhileTheOrderIsBeingSent(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast, with(func(s *config.Sending) { s.CallTimeout = 20 * time.Second }))
	c := b.client()
	telling := func(yes bool) { b.settings(func(s *d1sim.Settings) { s.HoldNotifications = !yes }) }
	for name, test := range map[string]struct {
		script d1sim.Script
		want   word
	}{
		"taken":   {d1sim.Script{Action: d1sim.ActionDelay}, "SHIPPED"},
		"refused": {d1sim.Script{Action: d1sim.ActionAnswer, Status: http.StatusTooManyRequests}, "HELD"},
	} {
		telling(false) // or a notification comes before the answer
		var id string
		for delay := time.Second; ; delay *= 2 {
			name := name + delay.String()
			s := test.script
			s.Kind, s.CardID, s.Delay = d1sim.KindProduction, "card-"+name, d1sim.Duration(delay)
			b.script(s)
			id = b.place(b.thales(name))
			b.eventually(name+" is being sent", func() bool {
				return query[bool](b, `SELECT EXISTS (SELECT FROM outbox WHERE order_id = $1 AND claim_token IS NOT NULL)`, id) || len(b.calls("card-"+name)) > 0
			})
			held, err := c.Hold(t.Context(), id, client.HoldRequest{})
			if err == nil && held.HoldPending && held.Status == client.StatusAccepted {
				break
			}
			// On a busy machine D1's answer may have come first.
			if answered := len(b.calls("card-"+name)) > 0; !answered || delay > 10*time.Second {
				t.Fatalf("%s, held while it is being sent: %+v, %v", name, held, err)
			}
		}
		telling(true)
		b.await(id, test.want)
		if a := b.get(id); a.needs("stop-too-late") != (test.want == "SHIPPED") || strings.Contains(a.text, "holdPending") {
			t.Errorf("%s: %s", name, a.text)
		}
		b.noGaps(id)
	}
}

// More orders of a consumer than the program allows are held, until a person lets one go.
func TestConsumerRule(t *testing.T) {
	t.Parallel()
	_, file := programsFile(t, strings.Replace(goldProgram, "        endsAt: SHIPPED\n", "        endsAt: SHIPPED\n        maxOrdersPerConsumerPerDay: 2\n", 1))
	b := newBank(t, fast, file)
	other := b.replica()
	var ids []string
	for i := range 6 {
		o := b.thales(fmt.Sprint("rule-", i)).with(body{"consumerId": "one-consumer"})
		if i%2 == 0 {
			ids = append(ids, b.place(o))
		} else {
			ids = append(ids, other.place(o))
		}
	}
	var held []string
	b.eventually("two are sent and four are held", func() bool {
		held = nil
		shipped := 0
		for _, id := range ids {
			switch b.get(id).view.Status {
			case "SHIPPED":
				shipped++
			case "HELD":
				held = append(held, id)
			}
		}
		return shipped == 2 && len(held) == 4
	})
	page := must[client.OrderPage](t, "listing")(b.client().Orders(t.Context(), client.OrderFilter{AttentionCode: "held-by-rule"}))
	if len(page.Data) != 4 || page.Data[0].Hold == nil || page.Data[0].Hold.Reason != "rule" {
		t.Errorf("the held ones: %+v", page.Data)
	}
	must[client.Order](t, "releasing")(b.client().Release(t.Context(), held[0], client.ReleaseRequest{Reason: "a family"}))
	if a := b.await(held[0], "SHIPPED"); len(a.view.Attention) != 0 {
		t.Errorf("released: %s", a.text)
	}
	for _, id := range ids {
		b.noGaps(id)
	}
	if !strings.Contains(b.metrics(), `cardorder_attention_orders{code="held-by-rule",issuer="ISSUER0001"} `) {
		t.Error("no metric of orders that need a human")
	}
}

// The whole life of an order in one list: without a gap, with who did what, and with what
// D1 told, but for what it must not repeat.
func TestTimelineOfAWholeLife(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.FailAt = &d1sim.FailAt{Status: "CARD_PROD_EXCEPTION", CardID: "card-life", Reason: "no stock of 4711 at " + testPAN}
	b := newBank(t, sim)
	c := b.client()
	b.script(d1sim.Script{Kind: d1sim.KindProduction, CardID: "card-life", Action: d1sim.ActionReject})
	if _, err := c.PauseLane(t.Context(), client.LaneD1, "to hold it in time"); err != nil {
		t.Fatal(err)
	}
	id := b.place(b.thales("life").with(body{"state": "ACTIVE"})) // with a warning
	must[client.Order](t, "holding")(c.Hold(t.Context(), id, client.HoldRequest{Reason: "ask first"}))
	note := must[client.Note](t, "noting")(c.AddNote(t.Context(), id, "Ada Example called: it is wanted."))
	must[client.Order](t, "releasing")(c.Release(t.Context(), id, client.ReleaseRequest{}))
	if _, err := c.ResumeLane(t.Context(), client.LaneD1); err != nil {
		t.Fatal(err)
	}
	b.await(id, "REJECTED")
	if o := must[client.Order](t, "clearing")(c.ClearAttention(t.Context(), id, "rejected", "Ada's name was corrected at D1.", 0)); len(o.Attention) != 0 {
		t.Errorf("cleared: %+v", o)
	}
	must[client.Order](t, "retrying")(c.Retry(t.Context(), id, client.Retry{}))
	b.await(id, "FAILED")
	if _, err := c.ClearAttention(t.Context(), id, "silent", "x", 0); !isProblem(err, client.ProblemNotRaised) {
		t.Errorf("cleared what is not there: %v", err)
	}
	if _, err := c.ClearAttention(t.Context(), id, "nothing", "x", 0); !isProblem(err, client.ProblemUnknownAttention) {
		t.Errorf("cleared what does not exist: %v", err)
	}
	must[client.Order](t, "clearing")(c.ClearAttention(t.Context(), id, "failed", "The cardholder was told.", 0))

	b.noGaps(id)
	want := []string{"accepted", "hold-requested", "local: Ada Example called: it is wanted.", "note-added", "release-requested",
		"local: Ada's name was corrected at D1.", "attention-cleared", "retry-requested", "local: The cardholder was told.", "attention-cleared"}
	if got := b.did(id); !slices.Equal(got, want) {
		t.Errorf("done:\n%s", strings.Join(got, "\n"))
	}
	var statuses []string
	entries := b.timeline(id)
	for i, e := range entries {
		if i > 0 && e.At.Before(entries[i-1].At) {
			t.Errorf("entry %d is older than the one before it", i)
		}
		if e.Notification != nil {
			n := e.Notification.Content
			if n == nil || n.Operation != "PRODUCE" {
				t.Fatalf("notification %+v", e.Notification)
			}
			statuses = append(statuses, n.OperationStatus+" "+n.Status)
			if n.Status == "CARD_PROD_EXCEPTION" && n.Reason != "no stock of •••• at ••••••••••••••••" {
				t.Errorf("the reason is %q", n.Reason)
			}
		}
	}
	if !slices.Contains(statuses, "PENDING CARD_PROD_ONGOING") || !slices.Contains(statuses, "FAILED CARD_PROD_EXCEPTION") {
		t.Errorf("D1 told of %v", statuses)
	}
	if first := entries[0].Event; first == nil || !slices.Equal(first.Warnings, []string{client.WarningDeprecatedState}) {
		t.Errorf("the first entry is %+v", entries[0])
	}
	if note.Author != "local" || query[int](b, `SELECT count(*) FROM order_notes WHERE position('Ada'::bytea IN body) > 0`) != 0 {
		t.Errorf("the note is %s's, or rests in clear", note.Author)
	}
	if b.logged("Ada") {
		t.Error("what people wrote was logged")
	}
}

// What people send along is held to the same rules as an order.
func TestPeopleSendNoCardData(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	id := b.place(b.thales("guarded"))
	path := orders + "/" + id
	for _, test := range []struct{ path, body, want string }{
		{"/hold", `{"reason":"instead of ` + testPAN + `"}`, "/reason card-number"},
		{"/release", `{"reason":"` + testPAN + `","why":1}`, "/reason card-number, /why unknown-member"},
		{"/notes", `{"text":"it is ` + testPAN + `"}`, "/text card-number"},
		{"/notes", `{}`, "/text required"},
		{"/attention/failed/clear", `{"note":"` + testPAN + `"}`, "/note card-number"},
		{"/attention/failed/clear", ``, "/note required"},
		{"/reorder", `{"reason":"` + testPAN + `","deliveryAddress":{"line1":"` + testPAN + `"}}`,
			"Idempotency-Key required, /deliveryAddress/line1 card-number, /deliveryAddress/zipCode required, /deliveryAddress/city required, /deliveryAddress/countryCode required, /reason card-number"},
		{"/reorder", `{"encryptedData":"a","sensitiveData":{"pan":"1"}}`,
			"Idempotency-Key required, /encryptedData invalid-format, /sensitiveData/pan invalid-format, /sensitiveData/exp required, /sensitiveData not-allowed"},
	} {
		a := b.action(path+test.path, test.body, nil)
		var got []string
		for _, f := range a.view.Errors {
			got = append(got, f.Pointer+f.Header+" "+f.Code)
		}
		if a.status != http.StatusBadRequest || strings.Join(got, ", ") != test.want || strings.Contains(a.text, testPAN) {
			t.Errorf("%s %s: %d %s", test.path, test.body, a.status, strings.Join(got, ", "))
		}
	}
	if n := query[int](b, `SELECT count(*) FROM order_notes`); n != 0 {
		t.Errorf("%d notes", n)
	}
	// A note that is sent again is the same note.
	key := http.Header{"Idempotency-Key": {"k"}}
	first, second := b.action(path+"/notes", `{"text":"once"}`, key), b.action(path+"/notes", `{"text":"once"}`, key)
	if first.status != http.StatusCreated || second.status != http.StatusOK || second.header.Get("Idempotent-Replayed") != "true" || first.view.ID != second.view.ID {
		t.Errorf("a note: %d %s, again: %d %s", first.status, first.text, second.status, second.text)
	}
	if a := b.action(path+"/notes", `{"text":"another"}`, key); a.status != http.StatusUnprocessableEntity || a.view.ConflictingOrder != id || !strings.Contains(a.text, "another note") {
		t.Errorf("another one with its key: %d %s", a.status, a.text)
	}
}

// What failed is ordered again: a new order to another address, linked both ways.
func TestReorder(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.FailAt = &d1sim.FailAt{Status: "DATA_EXCEPTION", IssuerRequestID: "request-lost"}
	b := newBank(t, sim)
	c := b.client()
	id := b.place(b.thales("lost"))
	b.await(id, "FAILED")
	address := &client.Address{FirstName: "Ada", LastName: "Example", Line1: "2 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR"}
	with := client.Reorder{DeliveryAddress: address, Reason: "moved"}
	again, err := c.Reorder(t.Context(), id, with, "key")
	if err != nil || again.Replayed || again.ReplacesOrderID != id || again.CardID != "card-lost" || again.IssuerRequestID == "request-lost" || again.Shipment == nil {
		t.Fatalf("reordered: %+v, %v", again, err)
	}
	b.await(again.ID, "SHIPPED")
	b.oneCard(again.IssuerRequestID)
	if o := must[client.Order](t, "reading")(c.Order(t.Context(), id)); !slices.Equal(o.ReplacedByOrderIDs, []string{again.ID}) {
		t.Errorf("the first order: %+v", o)
	}
	if got := b.did(id); !slices.Equal(got, []string{"accepted", "reordered"}) {
		t.Errorf("done: %v", got)
	}
	// The same request is the same order.
	repeated, err := c.Reorder(t.Context(), id, with, "key")
	if err != nil || !repeated.Replayed || repeated.ID != again.ID {
		t.Errorf("repeated: %+v, %v", repeated, err)
	}
	with.DeliveryAddress = nil
	if _, err := c.Reorder(t.Context(), id, with, "key"); !isProblem(err, client.ProblemIdempotencyConflict) {
		t.Errorf("another request with the same key: %v", err)
	}
	// What arrived, or is on its way, is not ordered again.
	if _, err := c.Reorder(t.Context(), again.ID, client.Reorder{}, ""); !isProblem(err, client.ProblemNotReorderable) {
		t.Errorf("an order that arrived: %v", err)
	}
	// The new address has to meet what an order's has.
	with.DeliveryAddress = &client.Address{Line1: "x", ZipCode: "1", City: "x", CountryCode: "XX"}
	_, err = c.Reorder(t.Context(), id, with, "")
	if p, ok := errors.AsType[*client.Problem](err); !ok || len(p.Errors) != 1 || p.Errors[0].Pointer != "/deliveryAddress/countryCode" {
		t.Errorf("a bad address: %v", err)
	}
	// Card data in clear.
	inClear := client.Reorder{SensitiveData: &client.SensitiveData{PAN: testPAN, Exp: "3012", Name: "ADA EXAMPLE"}, DuplicateOverride: &client.DuplicateOverride{Reason: "lost in the post"}}
	third, err := c.Reorder(t.Context(), id, inClear, "")
	if err != nil {
		t.Fatal(err)
	}
	b.await(third.ID, "SHIPPED")
	b.noGaps(id)
	b.noGaps(again.ID)
}

// When D1's key goes out of use, orders that wait with card data for it are told of before
// they are sent, and get other card data.
func TestCardDataOfARetiredKey(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	waiting := b.place(b.thales("waiting").with(body{"hold": true}))
	failing := b.place(b.thales("failing").with(body{"hold": true}))
	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := b.env.ServiceConfig()
	file, encrypter := newD1Key(t)
	old := cfg.Issuers[0].D1.EncryptionKeys[0]
	old.NotAfter = time.Now().Add(-time.Hour)
	cfg.Issuers[0].D1.EncryptionKeys = []config.EncryptionKey{old, {File: file}}
	if err := b.env.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := b.client()
	b.eventually("the orders are listed", func() bool {
		page, err := c.Orders(t.Context(), client.OrderFilter{AttentionCode: "card-data-needed"})
		return err == nil && len(page.Data) == 2
	})
	b.encrypter = encrypter
	o := must[client.Order](t, "retrying")(c.Retry(t.Context(), waiting, client.Retry{EncryptedData: b.jwe()}))
	if o.Status != client.StatusHeld || len(o.Attention) != 0 {
		t.Errorf("with other card data: %+v", o)
	}
	b.noGaps(waiting)

	// Ordered again, it needs card data for the new key.
	query[string](b, `WITH gone AS (DELETE FROM card_guard WHERE card_id = 'card-failing')
		UPDATE order_state SET status = 'CANCELLED', hold = NULL, ended_at = now() WHERE order_id = $1 RETURNING status`, failing)
	_, err := c.Reorder(t.Context(), failing, client.Reorder{}, "key")
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != client.ProblemCardDataRequired || len(p.Errors) != 1 || p.Errors[0].Pointer != "/encryptedData" {
		t.Fatalf("without card data: %v", err)
	}
	if _, err := c.Reorder(t.Context(), failing, client.Reorder{EncryptedData: b.jwe()}, "key"); err != nil {
		t.Errorf("with card data: %v", err)
	}
}

// newD1Key makes another key of D1, and writes the public one to a file.
func newD1Key(t *testing.T) (file string, encrypter *d1client.Encrypter) {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := key.PublicKey().Bytes()[1:]
	jwk := fmt.Appendf(nil, `{"kty":"EC","crv":"P-256","use":"enc","kid":"next","x":%q,"y":%q}`,
		base64.RawURLEncoding.EncodeToString(point[:32]), base64.RawURLEncoding.EncodeToString(point[32:]))
	public, err := d1client.ParsePublicJWK(jwk)
	if err != nil {
		t.Fatal(err)
	}
	if encrypter, err = d1client.NewEncrypter(public); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "next.json")
	if err := os.WriteFile(file, jwk, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, encrypter
}

// A paused lane says what to do about it.
func TestLaneAttention(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	if l := b.lane(); len(l.Attention) != 0 {
		t.Errorf("a lane that runs: %+v", l.Attention)
	}
	l, err := b.client().PauseLane(t.Context(), client.LaneD1, "maintenance")
	if err != nil || len(l.Attention) != 1 || l.Attention[0].Code != "lane-paused" || l.Attention[0].Actor != "operator" || l.Attention[0].Next == "" {
		t.Errorf("a paused lane: %+v, %v", l, err)
	}
}

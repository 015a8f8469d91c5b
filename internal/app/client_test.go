package app_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"cardorder/client"
	"cardorder/internal/d1sim"
)

// client returns the Go client of the service.
func (b *bank) client() *client.Client {
	b.t.Helper()
	c, err := client.New(client.Config{
		BaseURL: b.env.Ready.APIURL, IssuerID: b.env.Ready.IssuerID, Token: client.NewToken(b.env.Ready.Token), MaxAttempts: 1, HTTPClient: &http.Client{Transport: contract{b.t}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// newOrder is an individual order for the client; name makes its ids.
func (b *bank) newOrder(name string) *client.NewOrder {
	b.t.Helper()
	return &client.NewOrder{
		CardID: "card-" + name, IssuerRequestID: "request-" + name, ConsumerID: "consumer-" + name, CardProductID: "gold",
		DistributionChannel: client.ChannelThales,
		Services:            client.Services{Issuance: client.IssuanceCreation, Delivery: "POST"},
		PaymentApplication:  &client.PaymentApplication{Config: "visa", ODAKeyIndex: "1", DerivationKeyIndex: "1"},
		Shipment: &client.Shipment{Type: client.ShipmentIndividual, DeliveryAddress: &client.Address{
			FirstName: "Ada", LastName: "Example", Line1: "1 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR",
		}},
		EncryptedData: b.jwe(),
	}
}

func TestClientPlacesOrders(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	c := b.client()
	o := b.newOrder("typed")
	o.Metadata, o.Urgent = map[string]string{"campaign": "spring"}, true
	first, err := c.PlaceOrder(t.Context(), o, "key-1")
	if err != nil {
		t.Fatal(err)
	}
	if first.Replayed || first.Status != client.StatusAccepted || first.CardID != o.CardID || !first.Urgent || first.Metadata["campaign"] != "spring" {
		t.Errorf("placed: %+v", first)
	}
	o.EncryptedData = b.jwe() // differs each time
	again, err := c.PlaceOrder(t.Context(), o, "")
	if err != nil || !again.Replayed || again.ID != first.ID || !slices.Contains(again.Warnings, client.WarningCardDataNotCompared) {
		t.Errorf("again: %+v, %v", again, err)
	}
	// An order with a key made by the client, and card data in clear.
	plain := b.newOrder("clear")
	plain.IssuerRequestID, plain.EncryptedData = "", ""
	plain.SensitiveData = &client.SensitiveData{PAN: testPAN, Exp: "3012", Name: "ADA EXAMPLE"}
	keyed, err := c.PlaceOrder(t.Context(), plain, "")
	if err != nil || keyed.IdempotencyKey == "" || keyed.IssuerRequestID == "" {
		t.Fatalf("without a key: %+v, %v", keyed, err)
	}
	if repeated, err := c.PlaceOrder(t.Context(), plain, keyed.IdempotencyKey); err != nil || repeated.ID != keyed.ID || !repeated.Replayed {
		t.Errorf("its repetition: %+v, %v", repeated, err)
	}
}

func TestClientSeesProblems(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	c := b.client()
	first, err := c.PlaceOrder(t.Context(), b.newOrder("held"), "")
	if err != nil {
		t.Fatal(err)
	}
	problem := func(o *client.NewOrder, status int, name string) *client.Problem {
		t.Helper()
		_, err := c.PlaceOrder(t.Context(), o, "")
		p, ok := errors.AsType[*client.Problem](err)
		if !ok || p.Status != status || p.Type != name || !strings.HasPrefix(p.Instance, "urn:cardorder:request:") {
			t.Fatalf("%+v, want %d %s", err, status, name)
		}
		return p
	}
	other := b.newOrder("held")
	other.Services.Issuance = client.IssuanceRenewal
	if p := problem(other, 422, client.ProblemIdempotencyConflict); p.ConflictingOrder != first.ID {
		t.Errorf("other content: %+v", p)
	}
	other.IssuerRequestID = "request-other"
	if p := problem(other, 409, client.ProblemDuplicateOrder); p.ConflictingOrder != first.ID {
		t.Errorf("a second order of the card: %+v", p)
	}
	bad := b.newOrder("bad")
	bad.CardID, bad.Shipment.DeliveryAddress.City = testPAN, strings.Repeat("x", 65)
	p := problem(bad, 400, client.ProblemInvalidRequest)
	var got []string
	for _, f := range p.Errors {
		got = append(got, f.Pointer+" "+f.Code)
	}
	slices.Sort(got)
	if fmt.Sprint(got) != "[/cardId "+client.FaultCardNumber+" /shipment/deliveryAddress/city "+client.FaultTooLong+"]" {
		t.Errorf("faults: %v", got)
	}
	if _, err := c.Order(t.Context(), "00000000-0000-0000-0000-000000000000"); !isProblem(err, client.ProblemUnknownOrder) {
		t.Errorf("an unknown order: %v", err)
	}
}

func isProblem(err error, name string) bool {
	p, ok := errors.AsType[*client.Problem](err)
	return ok && p.Type == name
}

func TestClientReads(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	c := b.client()
	var ids []string
	for i := range 5 {
		placed, err := c.PlaceOrder(t.Context(), b.newOrder(fmt.Sprintf("read-%d", i)), "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append([]string{placed.ID}, ids...)
	}
	for _, id := range ids {
		b.await(id, "SHIPPED")
	}
	var got []string
	for o, err := range c.AllOrders(t.Context(), client.OrderFilter{Statuses: []client.Status{client.StatusShipped, client.StatusReady}, Limit: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.ID)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("listed %v, want %v", got, ids)
	}
	page, err := c.Orders(t.Context(), client.OrderFilter{CardID: "card-read-3"})
	if err != nil || len(page.Data) != 1 || page.Data[0].ID != ids[1] || page.NextCursor != "" {
		t.Errorf("by card: %+v, %v", page, err)
	}
	o, err := c.Order(t.Context(), ids[0])
	if err != nil || o.Status != client.StatusShipped || o.EndedAt == nil || o.OperationID == "" || len(o.Shipments) == 0 || o.Shipments[0].TrackingNumber == "" {
		t.Errorf("read: %+v, %v", o, err)
	}
	timeline, err := c.Timeline(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]int)
	seq := 0
	for _, e := range timeline {
		kinds[e.Kind]++
		switch {
		case e.Event != nil:
			if seq++; e.Event.Seq != seq || e.At.IsZero() {
				t.Errorf("event %d: %+v", seq, e.Event)
			}
		case e.Attempt != nil && (e.Attempt.HTTPStatus != 202 || e.Attempt.OperationID != o.OperationID):
			t.Errorf("attempt: %+v", e.Attempt)
		case e.Notification != nil && e.Notification.OperationID != o.OperationID:
			t.Errorf("notification: %+v", e.Notification)
		}
	}
	if kinds["event"] < o.Version || kinds["attempt"] != 1 || kinds["notification"] == 0 {
		t.Errorf("the timeline has %v, the order version %d", kinds, o.Version)
	}
}

// The client's types know every member that the service shows.
func TestClientKnowsEveryMember(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	whole := b.place(b.thales("whole").with(body{
		"state": "ACTIVE", "oldCardId": "card-before", "urgent": true, "metadata": body{"a": "b"},
		"duplicateOverride": body{"reason": "stolen in the post"}, "packagingConfig": body{"inserts": []string{"LEAFLET"}},
		"services": body{"issuance": "CREATION", "delivery": "POST", "packaging": "BOX", "cardCarrier": "WELCOME", "priority": "HIGH", "pinMailer": true},
	}))
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionReject, CardID: "card-refused"})
	refused := b.place(b.thales("refused"))
	b.await(whole, "SHIPPED")
	b.await(refused, "REJECTED")
	type timeline struct {
		Data       []client.TimelineEntry `json:"data"`
		NextCursor *string                `json:"nextCursor"`
	}
	type lanesPage struct {
		Data []client.Lane `json:"data"`
	}
	for path, into := range map[string]any{
		lanes:                                new(lanesPage),
		orders:                               new(client.OrderPage),
		orders + "/" + whole:                 new(client.Order),
		orders + "/" + whole + "/timeline":   new(timeline),
		orders + "/" + refused:               new(client.Order),
		orders + "/" + refused + "/timeline": new(timeline),
		orders + "/" + whole + "/changes":    new(client.ChangePage),
		orders + "?limit=0":                  new(client.Problem),
	} {
		text := b.do(http.MethodGet, path, nil, nil).text
		known := json.NewDecoder(strings.NewReader(text))
		known.DisallowUnknownFields()
		if err := known.Decode(into); err != nil {
			t.Errorf("%s: %v in %s", path, err, text)
		}
	}
}

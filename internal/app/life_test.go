package app_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"cardorder/internal/config"
	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// vocabulary gives D1's and the carriers' words their meanings.
func vocabulary(cfg *config.Config) {
	in := &cfg.Issuers[0]
	in.OnHoldStatuses = []string{"CARD_PROD_HELD"}
	in.DeliveredStatuses, in.ReturnedStatuses = []string{"DELIVERED", "POD"}, []string{"RETURN_TO_SENDER"}
}

// parcels are an order's shipments.
func (b *bank) parcels(id string) (list []parcelView) {
	b.t.Helper()
	var view struct{ Shipments []parcelView }
	if err := json.Unmarshal([]byte(b.get(id).text), &view); err != nil {
		b.t.Fatal(err)
	}
	return view.Shipments
}

type parcelView struct{ TrackingNumber, Carrier, Status, OrderStatus, TrackingURL string }

// move has the bureau put an order's card somewhere.
func (b *bank) move(id string, m d1sim.Move) {
	b.t.Helper()
	m.OperationID = b.get(id).view.OperationID
	if err := b.env.Management.Move(b.t.Context(), m); err != nil {
		b.t.Fatal(err)
	}
}

// track has D1's tracking hub tell something of a card, and returns its operation.
func (b *bank) track(cardID, operationID, status string, details d1sim.Details) string {
	b.t.Helper()
	id, err := b.env.Management.Tell(b.t.Context(), local.IssuerID, d1sim.Operation{
		OperationID: operationID, Operation: "STANDALONE_TRACKING", Status: status, CardID: cardID, Details: details,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// raises tells how often the service raised an attention.
func (b *bank) raises(code string) string {
	b.t.Helper()
	for line := range strings.Lines(b.metrics()) {
		if strings.HasPrefix(line, "cardorder_attention_raised_total{") && strings.Contains(line, `"`+code+`"`) {
			return strings.TrimSpace(line[strings.LastIndex(line, " "):])
		}
	}
	return "0"
}

// A card is followed to the cardholder's door, whatever the order of the news.
func TestCardIsFollowedToTheDoor(t *testing.T) {
	t.Parallel()
	for name, muddled := range map[string]bool{"in order": false, "doubled and the last first": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := fast
			sim.CarrierStatuses = []string{"IN_TRANSIT", "OUT_FOR_DELIVERY", "DELIVERED"}
			sim.CardOperations = []string{"CREATE", "ACTIVATE"}
			sim.HoldNotifications, sim.ReverseNotifications, sim.DuplicateNotifications = muddled, muddled, muddled
			b := newBank(t, sim, vocabulary)
			id := b.place(b.thales("door"))
			b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped})
			b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
			b.await(id, "DELIVERED")
			b.wait(d1sim.Condition{Idle: true})
			if a := b.await(id, "DELIVERED"); len(a.view.Attention) > 0 {
				t.Errorf("attention %v", a.view.Attention)
			}
			got := b.parcels(id)
			if len(got) != 1 || got[0].TrackingNumber == "" || got[0].Carrier != "dhl" || got[0].TrackingURL == "" || got[0].OrderStatus != "DELIVERED" {
				t.Errorf("parcels %+v", got)
			}
			if !muddled && got[0].Status != "DELIVERED" {
				t.Errorf("the carrier's last word is %s", got[0].Status)
			}
			// What the carrier wrote for people stays sealed.
			if n := query[int](b, `SELECT (SELECT count(*) FROM shipments s WHERE s::text ~ 'handed to') + (SELECT count(*) FROM order_events e WHERE e::text ~ 'handed to')`); n > 0 {
				t.Errorf("%d rows hold the carrier's message in clear", n)
			}
			if n := query[int](b, `SELECT count(*) FROM notifications WHERE operation IN ('CREATE', 'ACTIVATE') AND outcome = 'ignored'`); n != 2 {
				t.Errorf("%d other operations were ignored, want 2", n)
			}
			if a := b.do(http.MethodGet, orders+"?trackingNumber="+got[0].TrackingNumber, nil, nil); len(a.view.Data) != 1 {
				t.Errorf("%d orders have the tracking number", len(a.view.Data))
			}
			b.noGaps(id)
		})
	}
}

// A card that comes back calls a human; sent again under a new number it is on its way
// again, and the human is done.
func TestCardComesBackAndIsSentAgain(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]func(*bank, string, string){
		"by the carrier's code": func(b *bank, id, _ string) {
			b.move(id, d1sim.Move{Status: d1sim.CardShipped, OperationStatus: "SUCCESSFUL", Shipment: &d1sim.Shipment{Status: "RETURN_TO_SENDER"}})
		},
		"by D1's word": func(b *bank, id, _ string) {
			b.move(id, d1sim.Move{Status: d1sim.CardReturned, OperationStatus: "SUCCESSFUL"})
		},
		"by the tracking hub": func(b *bank, _, card string) {
			b.track(card, "", "SUCCESSFUL", d1sim.Details{TrackingType: d1sim.TrackReturn, Status: d1sim.CardReturned})
		},
		"by the tracking hub, under a number of its own": func(b *bank, _, card string) {
			b.track(card, "", "SUCCESSFUL", d1sim.Details{
				TrackingType: d1sim.TrackReturn, Status: d1sim.CardReturned, Shipment: &d1sim.Shipment{TrackingNumber: "BACK1", Status: "POD"},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, fast, vocabulary)
			id := b.place(b.thales("boomerang"))
			b.await(id, "SHIPPED")
			first := b.parcels(id)[0].TrackingNumber
			back(b, id, "card-boomerang")
			if a := b.await(id, "RETURNED"); !a.needs("returned") {
				t.Errorf("attention %v", a.view.Attention)
			}
			b.settings(func(s *d1sim.Settings) { s.CarrierStatuses = []string{"IN_TRANSIT"} })
			b.move(id, d1sim.Move{Status: d1sim.CardShipped, OperationStatus: "SUCCESSFUL", NewParcel: true})
			if a := b.await(id, "SHIPPED"); len(a.view.Attention) > 0 {
				t.Errorf("sent again, but attention %v", a.view.Attention)
			}
			b.wait(d1sim.Condition{Idle: true})
			second := ""
			for _, p := range b.parcels(id) {
				if p.TrackingNumber != first && p.TrackingNumber != "" && p.TrackingNumber != "BACK1" {
					second = p.TrackingNumber
					if p.OrderStatus != "SHIPPED" {
						t.Errorf("the new parcel is %s", p.OrderStatus)
					}
				}
			}
			b.move(id, d1sim.Move{Status: d1sim.CardShipped, OperationStatus: "SUCCESSFUL", Shipment: &d1sim.Shipment{Status: "POD"}})
			b.await(id, "DELIVERED")
			if second == "" {
				t.Errorf("parcels %+v", b.parcels(id))
			}
			if n := b.raises("returned"); n != "1" {
				t.Errorf("returned was raised %s times", n)
			}
			b.oneCard("request-boomerang")
			b.noGaps(id)
		})
	}
}

// Cards that D1 does not ship end when they are made; its tracking hub follows them
// from there, under operations that make no card.
func TestCardsThatD1DoesNotShip(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast, vocabulary)
	instant := b.thales("instant").with(body{"distributionChannel": "INSTANT", "persoStation": "printer-1", "shipment": nil, "services": body{"issuance": "CREATION"}})
	central := b.thales("central").with(body{"distributionChannel": "CENTRAL", "shipment": nil, "services": body{"issuance": "CREATION"}})
	for name, o := range map[string]body{"instant": instant, "central": central} {
		id := b.place(o)
		a := b.await(id, "PRODUCED")
		var view struct{ EndsAt, EndedAt string }
		b.eventually(name+" has ended", func() bool {
			a = b.get(id)
			return json.Unmarshal([]byte(a.text), &view) == nil && view.EndedAt != ""
		})
		if view.EndsAt != "PRODUCED" || len(a.view.Attention) > 0 || len(a.view.Shipments) > 0 {
			t.Errorf("%s: %s", name, a.text)
		}
		if name == "instant" {
			continue
		}
		operation := a.view.OperationID
		b.track("card-central", "", "SUCCESSFUL", d1sim.Details{TrackingType: d1sim.TrackProduction, Status: d1sim.CardShipped})
		b.await(id, "SHIPPED")
		following := b.track("card-central", "", "PENDING", d1sim.Details{TrackingType: d1sim.TrackShipment, Shipment: &d1sim.Shipment{TrackingNumber: "HUB1"}})
		b.track("card-central", following, "SUCCESSFUL", d1sim.Details{
			TrackingType: d1sim.TrackShipment, Shipment: &d1sim.Shipment{TrackingNumber: "HUB1", Carrier: "ups", Status: "ON_ROAD"},
		})
		b.eventually("the parcel is known", func() bool {
			p := b.parcels(id)
			return len(p) == 1 && p[0].TrackingNumber == "HUB1" && p[0].Carrier == "ups" && p[0].OrderStatus == "SHIPPED"
		})
		b.track("", following, "SUCCESSFUL", d1sim.Details{TrackingType: d1sim.TrackShipment, Shipment: &d1sim.Shipment{TrackingNumber: "HUB1", Status: "POD"}})
		a = b.await(id, "DELIVERED")
		if a.view.OperationID != operation || len(a.view.Attention) > 0 {
			t.Errorf("operation %s became %s, attention %v", operation, a.view.OperationID, a.view.Attention)
		}
		b.noGaps(id)
	}
}

// On hold by a name of the configuration; when D1 says now that it goes on, it does.
func TestOnHoldAndOn(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StopAt = d1sim.CardProdReady
	b := newBank(t, sim, vocabulary)
	id := b.place(b.thales("hold"))
	b.await(id, "READY")
	b.move(id, d1sim.Move{Status: "CARD_PROD_HELD"})
	b.await(id, "ON_HOLD")
	b.wait(d1sim.Condition{Idle: true})
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = true })
	b.move(id, d1sim.Move{Status: d1sim.CardProdReady})
	b.refresh(id)
	if a := b.await(id, "READY"); len(a.view.Attention) > 0 {
		t.Errorf("attention %v", a.view.Attention)
	}
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications, s.StopAt = false, "" })
	b.await(id, "SHIPPED")
	b.noGaps(id)
}

// A status that nobody here knows moves nothing, calls a human once, is counted, and
// stands in the timeline; the order goes on.
func TestUnknownStatus(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StopAt = d1sim.CardProdReady
	b := newBank(t, sim, vocabulary)
	id := b.place(b.thales("unknown"))
	b.await(id, "READY")
	for _, status := range []string{"CARD_PROD_POLISHED", "CARD_PROD_ENGRAVED"} {
		b.move(id, d1sim.Move{Status: status, Reason: "nobody knows"})
	}
	b.wait(d1sim.Condition{Idle: true})
	b.eventually("somebody is called", func() bool { return b.get(id).needs("unknown-status") })
	if a := b.get(id); a.view.Status != "READY" {
		t.Errorf("it moved the order to %s", a.view.Status)
	}
	b.wantMetrics(`cardorder_unknown_statuses_total{issuer="ISSUER0001"} 2`) // the last to be counted
	if n := b.raises("unknown-status"); n != "1" {
		t.Errorf("it was raised %s times", n)
	}
	timeline := b.do(http.MethodGet, orders+"/"+id+"/timeline", nil, nil).text
	for _, status := range []string{"CARD_PROD_POLISHED", "CARD_PROD_ENGRAVED"} {
		if !strings.Contains(timeline, `"`+status+`"`) {
			t.Errorf("the timeline does not tell of %s", status)
		}
	}
	b.settings(func(s *d1sim.Settings) { s.StopAt = "" })
	if a := b.await(id, "SHIPPED"); !a.needs("unknown-status") {
		t.Errorf("attention %v", a.view.Attention)
	}
	b.noGaps(id)
}

// anyNotification is something that D1 may say of an order, in words of all kinds.
func anyNotification(r *rand.Rand, i int, operationID string) body {
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	details := body{
		"status": pick("CARD_PROD_REQUESTED", "DATA_PREPARED", "DATA_EXCEPTION", "CARD_PROD_READY", "CARD_PROD_HELD", "CARD_PROD_ONGOING",
			"CARD_PROD_EXCEPTION", "CARD_PROD_CANCELED", "CARD_PROD_DONE", "CARD_SHIPPED", "CARD_SHIPPED", "CARD_RETURNED", "CARD_PROD_POLISHED", ""),
		"dueDate": pick("", "2026-12-01", "2026-12-24T10:00:00+01:00"), "productionSite": pick("", "Tczew", "Pont-Audemer"),
		"shipment": body{"trackingNumber": pick("", fmt.Sprintf(`T1"\,{}-%d`, i), fmt.Sprintf("T2-%d", i)), "status": pick("", "IN_TRANSIT", "POD", "RETURN_TO_SENDER")},
	}
	op := body{
		"operation": "PRODUCE", "operationId": operationID, "status": pick("PENDING", "SUCCESSFUL", "FAILED"),
		"startTime": "2026-01-01T00:00:00Z", "cardId": fmt.Sprintf("card-any-%d", i), "details": details,
	}
	if r.IntN(4) == 0 {
		op["operation"], op["operationId"] = "STANDALONE_TRACKING", fmt.Sprintf("hub-%d-%d", i, r.IntN(3))
		details["trackingType"] = pick("PRODUCTION", "SHIPMENT", "RETURN", "CUSTOMS")
	}
	return op
}

// Whatever D1 says of orders, in whatever order, call and company, and however often:
// each stands where the set of what was said puts it.
func TestNotificationsInAnyOrder(t *testing.T) {
	t.Parallel()
	const count = 25
	sim := fast
	sim.StopAt, sim.HoldNotifications = d1sim.CardProdRequested, true
	b := newBank(t, sim, vocabulary)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	in := &b.env.ServiceConfig().Issuers[0]
	words := order.Vocabulary{OnHold: in.OnHoldStatuses, Delivered: in.DeliveredStatuses, Returned: in.ReturnedStatuses}

	ids, want := make([]string, count), make([]order.State, count)
	var told []body
	for i := range ids {
		ids[i] = b.place(b.thales(fmt.Sprintf("any-%d", i)))
		operationID := b.await(ids[i], "SUBMITTED").view.OperationID
		want[i], _ = order.Advance(order.NewState(order.Shipped), order.Clock{}, order.Taken{OperationID: operationID})
		for range r.IntN(10) {
			n := anyNotification(r, i, operationID)
			told = append(told, n)
			op, err := d1client.ParseOperation(mustJSON(t, n))
			if err != nil {
				t.Fatal(err)
			}
			var evidence order.Evidence = op.Report(words)
			if op.Operation == store.OperationTracking {
				evidence = op.Tracking(words)
			}
			want[i], _ = order.Advance(want[i], order.Clock{}, evidence)
		}
	}
	again := append(slices.Clone(told), told[:len(told)/3]...)
	r.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	var calls sync.WaitGroup
	for _, some := range [][]body{again[:len(again)/2], again[len(again)/2:]} {
		calls.Go(func() {
			for call := range slices.Chunk(some, 7) {
				status, err := b.env.Management.SendNotification(t.Context(), local.IssuerID, mustJSON(t, body{"operations": call}))
				if status != http.StatusNoContent {
					t.Errorf("answered %d, %v", status, err)
				}
			}
		})
	}
	calls.Wait()
	b.eventually("everything is applied", func() bool {
		return query[int](b, `SELECT count(*) FROM notifications WHERE outcome <> 'applied'`) == 0
	})
	for i, id := range ids {
		var got struct {
			Status                  order.Status
			DueDate, ProductionSite string
			Attention               []struct{ Code order.Attention }
			Shipments               []struct {
				TrackingNumber string
				OrderStatus    order.Status
			}
		}
		if err := json.Unmarshal([]byte(b.get(id).text), &got); err != nil {
			t.Fatal(err)
		}
		var attention []order.Attention
		for _, a := range got.Attention {
			attention = append(attention, a.Code)
		}
		w := want[i]
		if got.Status != w.Status || got.DueDate != w.DueDate.Value || got.ProductionSite != w.ProductionSite.Value || !slices.Equal(attention, w.Attention) {
			t.Errorf("order %d: got %s %q due %q at %q, want %s %q due %q at %q", i,
				got.Status, attention, got.DueDate, got.ProductionSite, w.Status, w.Attention, w.DueDate.Value, w.ProductionSite.Value)
		}
		for _, p := range got.Shipments {
			if p.OrderStatus != w.Parcel(p.TrackingNumber) {
				t.Errorf("order %d: parcel %q is %q, want %q", i, p.TrackingNumber, p.OrderStatus, w.Parcel(p.TrackingNumber))
			}
		}
		b.noGaps(id)
	}
}

package order_test

import (
	"fmt"
	"slices"
	"testing"

	"cardorder/internal/order"

	"pgregory.net/rapid"
)

// carrier is a notification of the card's operation after it was shipped, with the word
// that the configuration gives the carrier's code.
func carrier(number string, code order.Status) order.Report {
	r := says("CARD_SHIPPED", successful)
	r.Parcel = order.Parcel{TrackingNumber: number, Status: code}
	return r
}

// back is D1's own word that a card came back.
func back(number string) order.Report {
	r := says("CARD_RETURNED", successful)
	r.Parcel.TrackingNumber = number
	return r
}

// hub is a notification of the tracking hub.
func hub(kind, status, number string, code order.Status) order.Tracking {
	return order.Tracking{Operation: successful, Type: kind, Status: status, Parcel: order.Parcel{TrackingNumber: number, Status: code}}
}

// TestParcels tells what words about parcels make of an order, in any order.
func TestParcels(t *testing.T) {
	t.Parallel()
	const gone, home = order.Delivered, order.Returned
	var (
		done      = says("CARD_PROD_DONE", successful)
		announced = order.Report{OperationID: "op", Operation: pending, Status: "CARD_PROD_DONE", Parcel: order.Parcel{TrackingNumber: "T9"}}
		cancelled = says("CARD_PROD_CANCELED", successful)
		failed45  = says("", failed)
		polished  = order.Report{OperationID: "op", Status: "CARD_PROD_POLISHED", Parcel: order.Parcel{TrackingNumber: "T1", Status: gone}}
		second    = order.Report{OperationID: "op-2", Operation: successful, Status: "CARD_RETURNED"}
		wayBack   = hub(order.TrackReturn, "CARD_RETURNED", "R1", "")
		unfailed  = order.Report{OperationID: "op", Operation: failed, Status: "CARD_SHIPPED"}
	)
	for name, c := range map[string]struct {
		heard     []order.Evidence
		want      order.Status
		attention []order.Attention
	}{
		"on its way":                        {list(carrier("T1", "")), order.Shipped, nil},
		"on its way, no number":             {list(carrier("", "")), order.Shipped, nil},
		"delivered":                         {list(carrier("T1", ""), carrier("T1", gone)), order.Delivered, nil},
		"delivered, no number":              {list(carrier("T1", ""), carrier("", gone)), order.Delivered, nil},
		"delivered, an unknown status":      {list(polished), order.Delivered, attentions(order.AttentionUnknownStatus)},
		"a number before it is handed over": {list(announced), order.Produced, nil},
		"returned, by the carrier":          {list(carrier("T1", ""), carrier("T1", home)), order.Returned, attentions(order.AttentionReturned)},
		"returned, by D1":                   {list(carrier("T1", ""), back("T1")), order.Returned, attentions(order.AttentionReturned)},
		"returned, by D1, under another":    {list(carrier("T1", ""), back("R1")), order.Returned, attentions(order.AttentionReturned)},
		"returned, no number":               {list(carrier("T1", ""), back("")), order.Returned, attentions(order.AttentionReturned)},
		"returned, nothing else heard":      {list(back("")), order.Returned, attentions(order.AttentionReturned)},
		"delivered, then returned":          {list(carrier("T1", gone), carrier("T1", home)), order.Returned, attentions(order.AttentionReturned)},
		"delivered, then returned, unnamed": {list(carrier("", gone), back("")), order.Returned, attentions(order.AttentionReturned)},

		"sent again":                          {list(carrier("T1", home), carrier("T2", "")), order.Shipped, nil},
		"sent again, the return named none":   {list(carrier("T1", ""), back(""), carrier("T2", "")), order.Shipped, nil},
		"sent again, the return told twice":   {list(carrier("T1", home), back(""), wayBack, carrier("T2", "")), order.Shipped, nil},
		"sent again, returned under another":  {list(carrier("T1", ""), back("R1"), carrier("T2", "")), order.Shipped, nil},
		"sent again, then delivered":          {list(carrier("T1", ""), back(""), carrier("T2", gone)), order.Delivered, nil},
		"sent again, and returned again":      {list(carrier("T1", home), carrier("T2", home)), order.Returned, attentions(order.AttentionReturned)},
		"sent again, returned by two ways":    {list(carrier("T1", ""), carrier("T2", ""), wayBack, hub(order.TrackReturn, "CARD_RETURNED", "R2", "")), order.Returned, attentions(order.AttentionReturned)},
		"two parcels, one delivered":          {list(carrier("T1", gone), carrier("T2", "")), order.Delivered, nil},
		"two parcels, the delivered one back": {list(carrier("T1", gone), carrier("T1", home), carrier("T2", "")), order.Shipped, nil},
		// It may have been T1 that came back: somebody has to look.
		"the first had no number": {list(carrier("", ""), back(""), carrier("T1", "")), order.Returned, attentions(order.AttentionReturned)},

		"hub: made and shipped elsewhere":   {list(done, hub(order.TrackProduction, "CARD_SHIPPED", "", "")), order.Shipped, nil},
		"hub: followed":                     {list(done, hub(order.TrackShipment, "", "T1", "")), order.Shipped, nil},
		"hub: delivered":                    {list(hub(order.TrackShipment, "CARD_SHIPPED", "T1", ""), hub(order.TrackShipment, "", "T1", gone)), order.Delivered, nil},
		"hub: returned":                     {list(carrier("T1", ""), hub(order.TrackReturn, "CARD_RETURNED", "", "")), order.Returned, attentions(order.AttentionReturned)},
		"hub: returned under its number":    {list(carrier("T1", ""), hub(order.TrackReturn, "CARD_RETURNED", "T1", "")), order.Returned, attentions(order.AttentionReturned)},
		"hub: returned under another":       {list(carrier("T1", ""), wayBack), order.Returned, attentions(order.AttentionReturned)},
		"hub: returned, then sent again":    {list(carrier("T1", ""), wayBack, carrier("T2", "")), order.Shipped, nil},
		"hub: delivered to the sender":      {list(carrier("T1", ""), hub(order.TrackReturn, "CARD_RETURNED", "R1", gone)), order.Returned, attentions(order.AttentionReturned)},
		"hub: on the way to the sender":     {list(carrier("T1", ""), hub(order.TrackReturn, "", "R1", gone)), order.Shipped, nil},
		"hub: a shipment came back":         {list(hub(order.TrackShipment, "CARD_RETURNED", "T1", "")), order.Returned, attentions(order.AttentionReturned)},
		"hub: it came back under another":   {list(carrier("T1", ""), hub(order.TrackShipment, "CARD_RETURNED", "R1", gone)), order.Returned, attentions(order.AttentionReturned)},
		"hub: following has begun":          {list(done, order.Tracking{Operation: pending, Type: order.TrackShipment, Parcel: order.Parcel{TrackingNumber: "T1"}}), order.Produced, nil},
		"hub: following failed":             {list(done, order.Tracking{Operation: failed, Type: order.TrackProduction, Status: "CARD_SHIPPED"}), order.Produced, nil},
		"hub: a word of another type":       {list(done, hub(order.TrackProduction, "CARD_RETURNED", "", "")), order.Produced, attentions(order.AttentionUnknownStatus)},
		"hub: the way back was handed over": {list(carrier("T1", ""), hub(order.TrackReturn, "CARD_SHIPPED", "R1", "")), order.Shipped, attentions(order.AttentionUnknownStatus)},
		"hub: an unknown type":              {list(done, hub("CUSTOMS", "CARD_SHIPPED", "T1", "")), order.Produced, attentions(order.AttentionUnknownStatus)},

		"failed, yet delivered":         {list(failed45, carrier("T1", gone)), order.Delivered, attentions(order.AttentionContradiction)},
		"cancelled, yet returned":       {list(cancelled, back("T1")), order.Returned, attentions(order.AttentionContradiction, order.AttentionReturned)},
		"shipped, the operation fails":  {list(unfailed), order.Shipped, attentions(order.AttentionContradiction)},
		"returned, the operation fails": {list(order.Report{OperationID: "op", Operation: failed, Status: "CARD_RETURNED"}), order.Returned, attentions(order.AttentionReturned)},
		"the second card came back":     {list(order.Taken{OperationID: "op"}, carrier("T1", ""), second), order.Shipped, attentions(order.AttentionSecondCard)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				heard := c.heard
				if name != "the second card came back" { // which one is the second depends on which was first
					heard = rapid.Permutation(heard).Draw(t, "order of arrival")
				}
				s := order.NewState(order.Shipped)
				for _, e := range heard {
					s, _ = order.Advance(s, order.Clock{}, e)
				}
				if s.Status != c.want || !slices.Equal(s.Attention, c.attention) {
					t.Errorf("got %s %q, want %s %q: %q", s.Status, s.Attention, c.want, c.attention, s.Parcels)
				}
			})
		})
	}
}

func list(heard ...order.Evidence) []order.Evidence { return heard }

func attentions(codes ...order.Attention) []order.Attention { return codes }

// The tracking hub's operations make no card.
func TestTrackingIsNeverAdopted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		if s := after(tracking().Draw(t, "tracking")); s.OperationID != "" || slices.Contains(s.Attention, order.AttentionSecondCard) {
			t.Errorf("got %+v", s)
		}
	})
}

// A bureau that tells of a new parcel every minute makes no row grow without end.
func TestManyParcels(t *testing.T) {
	t.Parallel()
	var heard []order.Evidence
	for i := range 40 {
		heard = append(heard, carrier(fmt.Sprintf("T%03d", i), []order.Status{"", order.Delivered, order.Returned}[i%3]))
	}
	want := after(heard...)
	if len(want.Parcels) > 24 || want.Status != order.Delivered || !slices.Equal(want.Attention, attentions(order.AttentionManyParcels)) {
		t.Errorf("got %d words, %s %q", len(want.Parcels), want.Status, want.Attention)
	}
	rapid.Check(t, func(t *rapid.T) {
		if got := after(rapid.Permutation(heard).Draw(t, "order of arrival")...); !slices.Equal(got.Parcels, want.Parcels) || got.Status != want.Status {
			t.Errorf("got %q, want %q", got.Parcels, want.Parcels)
		}
	})
}

func TestHasUnknownStatus(t *testing.T) {
	t.Parallel()
	for want, list := range map[bool][]order.Evidence{
		true: {says("CARD_PROD_POLISHED", pending), hub("CUSTOMS", "CARD_SHIPPED", "", ""), hub(order.TrackReturn, "CARD_LOST", "", "")},
		false: {nil, order.Taken{}, says("", pending), says("CARD_RETURNED", failed), onHold, hub("CUSTOMS", "", "", ""),
			hub(order.TrackReturn, "CARD_RETURNED", "", "")},
	} {
		for _, e := range list {
			if got := order.HasUnknownStatus(e); got != want {
				t.Errorf("%+v: %t", e, got)
			}
		}
	}
}

func TestParcelOfAnOrder(t *testing.T) {
	t.Parallel()
	s := after(carrier("", ""), carrier("T1", ""), carrier("T1=6", order.Delivered), carrier("T2", order.Returned))
	for number, want := range map[string]order.Status{"T1": order.Shipped, "T1=6": order.Delivered, "T2": order.Returned, "": order.Shipped, "T3": ""} {
		if got := s.Parcel(number); got != want {
			t.Errorf("%q is %q, want %q", number, got, want)
		}
	}
	// The only parcel is the one that came back.
	if got := after(carrier("T1", ""), back("")).Parcel("T1"); got != order.Returned {
		t.Errorf("got %q", got)
	}
}

package d1sim_test

import (
	"slices"
	"testing"

	"cardorder/internal/d1sim"
)

// parcels are the shipments that the bank was told of, as number, code and card status.
func (b *bureau) parcels() (list [][3]string) {
	for _, op := range slices.Concat(b.bank.received()...) {
		if s := op.Details.Shipment; s != nil {
			list = append(list, [3]string{s.TrackingNumber, s.Status, op.Details.Status + " " + op.Status})
		}
	}
	return list
}

// The carrier follows a shipped card, step by step.
func TestCarrierReports(t *testing.T) {
	t.Parallel()
	set := fast
	set.CarrierStatuses = []string{"IN_TRANSIT", "DELIVERED"}
	b := newBureau(t, set)
	b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Idle: true})
	got := b.parcels()
	for i, code := range []string{"HANDED_OVER", "IN_TRANSIT", "DELIVERED"} {
		if len(got) != 3 || got[i] != [3]string{got[0][0], code, "CARD_SHIPPED SUCCESSFUL"} {
			t.Fatalf("told of %q", got)
		}
	}
	if now := b.operations("card-1")[0].Details.Shipment; now.Status != "DELIVERED" || now.TrackingNumber != got[0][0] {
		t.Errorf("status shows %+v", now)
	}
}

// A card comes back and is sent again, under a new number, which the carrier follows too.
func TestCardComesBackAndIsSentAgain(t *testing.T) {
	t.Parallel()
	set := fast
	set.CarrierStatuses = []string{"IN_TRANSIT"}
	b := newBureau(t, set)
	op := b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Idle: true})
	for _, move := range []d1sim.Move{
		{Status: d1sim.CardReturned, Shipment: &d1sim.Shipment{Status: "RTS", Message: "nobody there"}},
		{Status: d1sim.CardShipped, NewParcel: true, Shipment: &d1sim.Shipment{Carrier: "ups"}},
	} {
		move.OperationID, move.OperationStatus = op, d1sim.OperationSuccessful
		if err := b.management.Move(t.Context(), move); err != nil {
			t.Fatal(err)
		}
		b.wait(d1sim.Condition{Idle: true})
	}
	got := b.parcels()
	if len(got) != 5 {
		t.Fatalf("told of %q", got)
	}
	first, second := got[0][0], got[4][0]
	want := [][3]string{
		{first, "HANDED_OVER", "CARD_SHIPPED SUCCESSFUL"}, {first, "IN_TRANSIT", "CARD_SHIPPED SUCCESSFUL"},
		{first, "RTS", "CARD_RETURNED SUCCESSFUL"},
		{second, "HANDED_OVER", "CARD_SHIPPED SUCCESSFUL"}, {second, "IN_TRANSIT", "CARD_SHIPPED SUCCESSFUL"},
	}
	if first == second || !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
	if last := b.operations("card-1")[0].Details.Shipment; last.Carrier != "ups" {
		t.Errorf("carrier %q", last.Carrier)
	}
}

// Operations that no order leads to are told, and change no card.
func TestOtherOperations(t *testing.T) {
	t.Parallel()
	set := still
	set.CardOperations = []string{"CREATE", "ACTIVATE"}
	b := newBureau(t, set)
	b.accepted("card-1", b.thales("request-1"))
	tracking := d1sim.Operation{Operation: "STANDALONE_TRACKING", CardID: "card-1", Status: d1sim.OperationPending,
		Details: d1sim.Details{TrackingType: d1sim.TrackShipment, Shipment: &d1sim.Shipment{TrackingNumber: "T1"}}}
	var err error
	if tracking.OperationID, err = b.management.Tell(t.Context(), issuerID, tracking); err != nil || tracking.OperationID == "" {
		t.Fatalf("%q, %v", tracking.OperationID, err)
	}
	tracking.Status = ""
	if id, err := b.management.Tell(t.Context(), issuerID, tracking); err != nil || id != tracking.OperationID {
		t.Fatalf("%q, %v", id, err)
	}
	b.wait(d1sim.Condition{Idle: true})

	var told []string
	ids := map[string]bool{}
	for _, op := range slices.Concat(b.bank.received()...) {
		told = append(told, op.Operation+" "+op.Details.TrackingType+" "+op.Status)
		ids[op.OperationID] = true
		if op.CardID != "card-1" || op.StartTime.IsZero() || (op.EndTime == nil) != (op.Status == d1sim.OperationPending) {
			t.Errorf("%+v", op)
		}
	}
	want := []string{
		"PRODUCE  PENDING", "CREATE  SUCCESSFUL", "ACTIVATE  SUCCESSFUL", "STANDALONE_TRACKING SHIPMENT PENDING", "STANDALONE_TRACKING SHIPMENT SUCCESSFUL",
	}
	if !slices.Equal(told, want) || len(ids) != 4 || len(b.operations("card-1")) != 1 {
		t.Errorf("told of %q under %d ids, want %q", told, len(ids), want)
	}
	for _, wrong := range []struct {
		issuer string
		op     d1sim.Operation
	}{{"nobody0000", tracking}, {issuerID, d1sim.Operation{}}} {
		if _, err := b.management.Tell(t.Context(), wrong.issuer, wrong.op); err == nil {
			t.Errorf("%+v was told", wrong)
		}
	}
}

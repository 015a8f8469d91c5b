package d1sim_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"cardorder/internal/d1sim"

	"pgregory.net/rapid"
)

var (
	toDone    = []string{"CARD_PROD_REQUESTED", "DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING", "CARD_PROD_DONE"}
	toShipped = append(slices.Clone(toDone), "CARD_SHIPPED")
)

func TestWalk(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(order map[string]any)
		want   []string
	}{
		"THALES": {func(map[string]any) {}, toShipped},
		"THALES, NO_SHIPMENT": {func(o map[string]any) {
			o["services"].(map[string]any)["delivery"] = "NO_SHIPMENT"
		}, toDone},
		"THALES, no delivery": {func(o map[string]any) { delete(o["services"].(map[string]any), "delivery") }, toDone},
		"INSTANT":             {func(o map[string]any) { o["distributionChannel"], o["persoStation"] = "INSTANT", "s" }, toDone},
		"CENTRAL":             {func(o map[string]any) { o["distributionChannel"] = "CENTRAL" }, toDone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBureau(t, fast)
			order := b.thales("request-1")
			c.change(order)
			operationID := b.accepted("card-1", order)
			b.wait(d1sim.Condition{Idle: true})

			if got := b.bank.statuses(); !slices.Equal(got, c.want) {
				t.Fatalf("notified of %v, want %v", got, c.want)
			}
			var last d1sim.Operation
			for _, op := range slices.Concat(b.bank.received()...) {
				wantStatus, ended := "PENDING", op.Details.Status == c.want[len(c.want)-1]
				if ended {
					wantStatus = "SUCCESSFUL"
				}
				if op.OperationID != operationID || op.Operation != "PRODUCE" || op.CardID != "card-1" ||
					op.IssuerRequestID != "request-1" || op.Status != wantStatus || (op.EndTime != nil) != ended ||
					op.StartTime.IsZero() || !last.StartTime.IsZero() && !op.StartTime.Equal(last.StartTime) ||
					op.Details.DueDate == "" || op.Details.ProductionSite == "" ||
					(op.Details.Shipment != nil) != (op.Details.Status == "CARD_SHIPPED") {
					t.Errorf("operation %+v", op)
				}
				last = op
			}
			if shipment := last.Details.Shipment; shipment != nil && (shipment.Carrier == "" || shipment.TrackingNumber == "" || shipment.TrackingURL == "") {
				t.Errorf("shipment %+v", shipment)
			}
			if got := b.operations("card-1"); toJSON(t, got) != toJSON(t, []d1sim.Operation{last}) {
				t.Errorf("status shows %+v, last notification was %+v", got, last)
			}
		})
	}
}

func TestStopAtAndWalkOn(t *testing.T) {
	t.Parallel()
	set := fast
	set.StopAt = d1sim.CardProdReady
	b := newBureau(t, set)
	b.accepted("card-1", b.thales("request-1"))
	b.wait(d1sim.Condition{Idle: true})
	if got := b.sim.Cards()[0].Status; got != d1sim.CardProdReady {
		t.Errorf("stopped at %s", got)
	}
	b.set(func(s *d1sim.Settings) { s.StopAt = "" })
	b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped})
}

func TestStepIntervalChangeAppliesAtOnce(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{StepInterval: d1sim.Duration(time.Hour)})
	b.accepted("card-1", b.thales("request-1"))
	b.set(func(s *d1sim.Settings) { s.StepInterval = d1sim.Duration(time.Millisecond) })
	b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped})
}

func TestFailAt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		failAt d1sim.FailAt
		want   []string
		status string
	}{
		"data": {d1sim.FailAt{Status: d1sim.DataException, Reason: "out of stock"},
			[]string{"CARD_PROD_REQUESTED", "DATA_EXCEPTION"}, "FAILED"},
		"production": {d1sim.FailAt{Status: d1sim.CardProdException, CardID: "card-1"},
			append(slices.Clone(toDone[:4]), "CARD_PROD_EXCEPTION"), "FAILED"},
		"pending": {d1sim.FailAt{Status: d1sim.DataException, OperationStatus: d1sim.OperationPending},
			slices.Insert(slices.Clone(toShipped), 1, "DATA_EXCEPTION"), "SUCCESSFUL"},
		"another order": {d1sim.FailAt{Status: d1sim.DataException, IssuerRequestID: "request-2"}, toShipped, "SUCCESSFUL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := fast
			set.FailAt = &c.failAt
			b := newBureau(t, set)
			b.accepted("card-1", b.thales("request-1"))
			b.wait(d1sim.Condition{Idle: true})
			if got := b.bank.statuses(); !slices.Equal(got, c.want) {
				t.Errorf("notified of %v, want %v", got, c.want)
			}
			last := b.operations("card-1")[0]
			failed := c.status == "FAILED"
			if last.Status != c.status || last.EndTime == nil || (last.ErrorCode != "") != failed || (last.Details.Reason != "") != failed {
				t.Errorf("ended as %+v", last)
			}
		})
	}
}

// However orders come and settings change, a card moves forward only, and comes to its end.
func TestWalkMovesForwardOnly(t *testing.T) {
	t.Parallel()
	path := []string{"CARD_PROD_REQUESTED", "DATA_EXCEPTION", "DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING",
		"CARD_PROD_EXCEPTION", "CARD_PROD_DONE", "CARD_SHIPPED"}
	set := fast
	set.MaxPerCall = 1000
	b := newBureau(t, set)
	order := b.thales("")
	delete(order, "issuerRequestId")

	rapid.Check(t, func(rt *rapid.T) {
		b.set(func(s *d1sim.Settings) { s.HoldNotifications = true })
		before := len(b.bank.received())
		for i := range rapid.IntRange(1, 3).Draw(rt, "orders") {
			b.accepted(fmt.Sprintf("card-%d", i), order)
			b.set(func(s *d1sim.Settings) {
				s.StopAt = rapid.SampledFrom(append([]string{""}, path...)).Draw(rt, "stopAt")
				s.FailAt = nil
				if status := rapid.SampledFrom([]string{"", "DATA_EXCEPTION", "CARD_PROD_EXCEPTION"}).Draw(rt, "failAt"); status != "" {
					s.FailAt = &d1sim.FailAt{Status: status, OperationStatus: rapid.SampledFrom([]string{"PENDING", "FAILED"}).Draw(rt, "as")}
				}
			})
		}
		b.set(func(s *d1sim.Settings) { s.StopAt, s.HoldNotifications = "", false })
		b.wait(d1sim.Condition{Idle: true})

		reached := map[string]int{}
		for _, op := range slices.Concat(b.bank.received()[before:]...) {
			step := slices.Index(path, op.Details.Status) + 1
			if step <= reached[op.OperationID] {
				rt.Errorf("%s after step %d", op.Details.Status, reached[op.OperationID])
			}
			reached[op.OperationID] = step
		}
		for _, card := range b.sim.Cards() {
			if card.OperationStatus == "PENDING" {
				rt.Errorf("card has not come to an end: %+v", card)
			}
		}
	})
}

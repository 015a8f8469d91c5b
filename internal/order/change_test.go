package order_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"cardorder/internal/order"
)

// standing is an order that D1 has brought to a status, or that has one of ours.
func standing(status order.Status, endsAt order.Status) order.State {
	reports := map[order.Status]order.Report{
		order.Submitted: says("CARD_PROD_REQUESTED", pending), order.DataPrepared: says("DATA_PREPARED", pending),
		order.Ready: says("CARD_PROD_READY", pending), order.OnHold: onHold, order.InProduction: says("CARD_PROD_ONGOING", pending),
		order.Exception: says("CARD_PROD_EXCEPTION", pending), order.Failed: says("CARD_PROD_EXCEPTION", failed),
		order.Cancelled: says("CARD_PROD_CANCELED", pending), order.Produced: says("CARD_PROD_DONE", pending),
		order.Shipped: says("CARD_SHIPPED", successful), order.Returned: says("CARD_RETURNED", successful),
	}
	s := order.NewState(endsAt)
	if r, ok := reports[status]; ok {
		s, _ = order.Advance(s, order.Clock{}, r)
	} else {
		s.Status = status
	}
	return s
}

func TestPlanChange(t *testing.T) {
	t.Parallel()
	const done, waits, goes, late, never = order.ChangeDone, order.ChangeWaits, order.ChangeGoes, order.ChangeTooLate, order.ChangeImpossible
	type plans [4]order.ChangePlan // of order.ChangeTypes: cancel, accelerate, redirect, both
	certain := map[order.Status]plans{
		order.Accepted:       {done, waits, done, waits},
		order.Held:           {done, waits, done, waits},
		order.OutcomeUnknown: {waits, waits, waits, waits},
		order.Rejected:       {done, never, never, never},
	}
	claimed := map[order.Status]plans{
		order.Accepted:       {waits, waits, waits, waits},
		order.Held:           {waits, waits, waits, waits}, // the database's history has changed since
		order.OutcomeUnknown: {waits, waits, waits, waits},
		order.Rejected:       {waits, never, never, never},
	}
	atD1 := map[order.Status]plans{
		order.Submitted: {goes, goes, goes, goes}, order.DataPrepared: {goes, goes, goes, goes}, order.Ready: {goes, goes, goes, goes},
		order.OnHold: {goes, goes, goes, goes}, order.InProduction: {goes, goes, goes, goes}, order.Exception: {goes, goes, goes, goes},
		order.Produced: {goes, goes, goes, goes},
		order.Shipped:  {late, late, late, late}, order.Delivered: {late, late, late, late}, order.Returned: {late, late, late, late},
		order.Failed: {never, never, never, never}, order.Cancelled: {never, never, never, never},
	}
	maps.Copy(certain, atD1)
	maps.Copy(claimed, atD1)
	for sure, table := range map[bool]map[order.Status]plans{true: certain, false: claimed} {
		for _, status := range order.Statuses {
			want, ok := table[status]
			if !ok {
				t.Errorf("the table lacks %s", status)
			}
			for i, kind := range order.ChangeTypes {
				if got := order.PlanChange(kind, standing(status, order.Shipped), sure); got != want[i] {
					t.Errorf("%s of an order that is %s, certain %v: plan %d, want %d", kind, status, sure, got, want[i])
				}
			}
		}
	}
	// A card that ends as produced is not on its way any more.
	if got := order.PlanChange(order.ChangeCancel, standing(order.Produced, order.Produced), false); got != never {
		t.Errorf("cancel of a card that was handed over: plan %d", got)
	}
}

func TestSettleChange(t *testing.T) {
	t.Parallel()
	const requested, sent, expired = order.ChangeRequested, order.ChangeSent, order.ChangeExpired
	here := standing(order.Cancelled, order.Shipped)
	here.Rank = 0
	for _, c := range []struct {
		what   string
		kind   order.ChangeType
		state  order.ChangeState
		order  order.State
		want   order.ChangeState
		reason order.ChangeReason
	}{
		{"waiting", order.ChangeCancel, requested, standing(order.Accepted, order.Shipped), requested, ""},
		{"rejected", order.ChangeAccelerate, requested, standing(order.Rejected, order.Shipped), requested, ""},
		{"cancelled here", order.ChangeCancel, requested, here, order.ChangeAccepted, order.ReasonBeforeDispatch},
		{"cancelled here", order.ChangeRedirect, requested, here, order.ChangeRefused, order.ReasonOrderEnded},
		{"cancelled at D1", order.ChangeCancel, sent, standing(order.Cancelled, order.Shipped), order.ChangeAccepted, ""},
		{"cancelled at D1", order.ChangeCancel, expired, standing(order.Cancelled, order.Shipped), order.ChangeAccepted, ""},
		{"cancelled at D1", order.ChangeAccelerate, sent, standing(order.Cancelled, order.Shipped), order.ChangeRefused, order.ReasonOrderEnded},
		{"under way", order.ChangeCancel, sent, standing(order.InProduction, order.Shipped), sent, ""},
		{"made", order.ChangeCancel, sent, standing(order.Produced, order.Shipped), sent, ""},
		{"handed over", order.ChangeCancel, sent, standing(order.Produced, order.Produced), order.ChangeRefused, order.ReasonProducedFirst},
		{"shipped", order.ChangeCancel, requested, standing(order.Shipped, order.Shipped), order.ChangeRefused, order.ReasonShippedFirst},
		{"shipped", order.ChangeCancel, sent, standing(order.Shipped, order.Shipped), order.ChangeRefused, order.ReasonShippedFirst},
		{"shipped", order.ChangeCancel, expired, standing(order.Shipped, order.Shipped), order.ChangeRefused, order.ReasonShippedFirst},
		{"shipped", order.ChangeRedirect, requested, standing(order.Shipped, order.Shipped), order.ChangeRefused, order.ReasonShippedFirst},
		{"shipped, and may have been redirected", order.ChangeRedirect, sent, standing(order.Shipped, order.Shipped), sent, ""},
		{"failed", order.ChangeAccelerateAndRedirect, sent, standing(order.Failed, order.Shipped), order.ChangeRefused, order.ReasonOrderEnded},
		{"came back", order.ChangeRedirect, sent, standing(order.Returned, order.Shipped), order.ChangeRefused, order.ReasonOrderEnded},
	} {
		state, reason := order.SettleChange(c.kind, c.state, c.order)
		if state != c.want || reason != c.reason {
			t.Errorf("%s of an order that is %s: %s %q, want %s %q", c.kind, c.what, state, reason, c.want, c.reason)
		}
	}
}

func TestMayStillArrive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind   order.ChangeType
		state  order.ChangeState
		reason order.ChangeReason
		want   bool
	}{
		{order.ChangeCancel, order.ChangeRequested, "", true},
		{order.ChangeCancel, order.ChangeSent, "", true},
		{order.ChangeCancel, order.ChangeAccepted, "", false},
		{order.ChangeCancel, order.ChangeRefused, order.ReasonRefused, true},
		{order.ChangeCancel, order.ChangeRefused, order.ReasonOrderEnded, false},
		{order.ChangeCancel, order.ChangeExpired, order.ReasonNoAnswer, true},
		{order.ChangeRedirect, order.ChangeSent, "", false},
	} {
		if got := order.MayStillArrive(c.kind, c.state, c.reason); got != c.want {
			t.Errorf("%s %s %s: %v", c.kind, c.state, c.reason, got)
		}
	}
}

// D1 does what a cancel wants until the card leaves: a card that was made before does not
// contradict it, and one that leaves after it does.
func TestCancelDone(t *testing.T) {
	t.Parallel()
	made, shipped := says("CARD_PROD_DONE", pending), says("CARD_SHIPPED", successful)
	for _, c := range []struct {
		evidence []order.Evidence
		want     order.Status
		attend   []order.Attention
	}{
		{[]order.Evidence{made, order.CancelDone{}}, order.Cancelled, nil},
		{[]order.Evidence{order.CancelDone{}, made}, order.Cancelled, nil},
		{[]order.Evidence{order.CancelDone{}, says("CARD_PROD_CANCELED", failed)}, order.Cancelled, nil},
		{[]order.Evidence{order.CancelDone{}, shipped}, order.Shipped, []order.Attention{order.AttentionContradiction}},
		{[]order.Evidence{shipped, order.CancelDone{}}, order.Shipped, []order.Attention{order.AttentionContradiction}},
	} {
		if s := after(c.evidence...); s.Status != c.want || !slices.Equal(s.Attention, c.attend) || !s.Ended() {
			t.Errorf("%v: %s %q", c.evidence, s.Status, s.Attention)
		}
	}
}

func TestDecodeChange(t *testing.T) {
	t.Parallel()
	// As the order's own rules: what a program says of countries and names.
	withProgram := &order.Rules{Guard: guard, Programs: map[string]*order.Program{
		"p": {CardProductID: "p", DestinationCountries: []string{"FR", "PL"}},
	}}
	of := order.ChangedOrder{CardProductID: "p", Shipped: true}
	const address = `"newDeliveryAddress":{"line1":"1 rue A","zipCode":"75001","city":"Paris","countryCode":"FR"}`
	for _, c := range []struct {
		text  string
		of    order.ChangedOrder
		rules *order.Rules
		want  string // the pointers and codes of the faults
	}{
		{`{"type":"CANCEL"}`, of, rules, ""},
		{`{"type":"ACCELERATE","note":"the customer travels on Friday"}`, of, rules, ""},
		{`{"type":"REDIRECT",` + address + `}`, of, rules, ""},
		{`{"type":"ACCELERATE_AND_REDIRECT",` + address + `}`, of, withProgram, ""},
		{`{"type":"REDIRECT",` + address + `}`, order.ChangedOrder{CardProductID: "gone", Shipped: true}, withProgram, ""},
		{`{}`, of, rules, "/type required"},
		{`{"type":"PAINT"}`, of, rules, "/type invalid-value"},
		{`{"type":"REDIRECT"}`, of, rules, "/newDeliveryAddress required"},
		{`{"type":"CANCEL",` + address + `}`, of, rules, "/newDeliveryAddress not-allowed"},
		{`{"type":"REDIRECT",` + address + `}`, order.ChangedOrder{CardProductID: "p"}, rules, "/type not-allowed"},
		{`{"type":"REDIRECT","newDeliveryAddress":{"line1":"x","city":"` + visaPAN + `","countryCode":"XX","street":"y"},"why":"z"}`, of, rules,
			"/newDeliveryAddress/city card-number, /newDeliveryAddress/countryCode invalid-value, /newDeliveryAddress/street unknown-member, " +
				"/newDeliveryAddress/zipCode required, /why unknown-member"},
		{`{"type":"REDIRECT","note":"instead of ` + visaPAN + `","newDeliveryAddress":{"line1":"x","zipCode":"1","city":"y","countryCode":"DE"}}`, of, withProgram,
			"/newDeliveryAddress/countryCode outside-program, /note card-number"},
		{`{"type":"REDIRECT","newDeliveryAddress":"home"}`, of, rules, "/newDeliveryAddress wrong-type"},
		{`{"type":"CANCEL","note":"a\u202eb"}`, of, rules, "/note invalid-character"},
		{`[]`, of, rules, " wrong-type"},
		{`{"type":`, of, rules, "/type invalid-json"},
	} {
		r, faults := order.DecodeChange([]byte(c.text), c.rules, c.of)
		if got := strings.Join(places(faults), ", "); got != c.want {
			t.Errorf("%s: %s, want %s", c.text, got, c.want)
		}
		if len(faults) == 0 && r.Canonical == nil {
			t.Errorf("%s is not compared", c.text)
		}
	}
	// What is compared does not depend on how it was written, nor on the agreements of the day.
	first, _ := order.DecodeChange([]byte(`{"type":"REDIRECT",`+address+`}`), rules, of)
	again, faults := order.DecodeChange([]byte(`{ `+strings.Replace(address, "FR", "\\u0046R", 1)+`, "type" : "REDIRECT" }`),
		&order.Rules{Guard: guard, Programs: map[string]*order.Program{"p": {DestinationCountries: []string{}}}}, of)
	if string(first.Canonical) != string(again.Canonical) || len(faults) != 1 {
		t.Errorf("%s and %s, %v", first.Canonical, again.Canonical, faults)
	}
}

func TestChangeBody(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind    order.ChangeType
		address string
		want    string
	}{
		{order.ChangeCancel, "", `{"type":"CANCEL","issuerRequestId":"r"}`},
		{order.ChangeRedirect, `{"line1":"x"}`, `{"type":"REDIRECT","issuerRequestId":"r","newDeliveryAddress":{"line1":"x"}}`},
		{order.ChangeAccelerateAndRedirect, `{"line1":"x"}`, `{"type":"ACCELERATE_AND_REDIRECT","issuerRequestId":"r","newDeliveryAddress":{"line1":"x"}}`},
		{order.ChangeAccelerateAndRedirect, "", `{"type":"ACCELERATE","issuerRequestId":"r"}`}, // redirected here
	} {
		var address []byte
		if c.address != "" {
			address = []byte(c.address)
		}
		if body, err := order.ChangeBody(c.kind, "r", address); err != nil || string(body) != c.want {
			t.Errorf("%s, %v; want %s", body, err, c.want)
		}
	}
}

package order

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Every status of an order that D1 has can be imported, by our word and by D1's, and is
// then where a report of D1 would have put it.
func TestImportedStatuses(t *testing.T) {
	t.Parallel()
	clock := Clock{Now: time.Now()}
	state := func(word string) (State, Faults) {
		t.Helper()
		in, faults := DecodeImport(fmt.Appendf(nil, `{"cardId":"c","operationId":"op","status":%q}`, word), &Rules{})
		s := NewState(in.EndsAt)
		s.Version = 0
		s, _ = Advance(s, clock, Imported{OperationID: in.OperationID, Status: in.Status})
		return s, faults
	}
	notThere := []Status{Accepted, Held, OutcomeUnknown, Rejected}
	for _, status := range Statuses {
		s, faults := state(string(status))
		if slices.Contains(notThere, status) {
			if len(faults) != 1 || faults[0].Pointer != "/status" {
				t.Errorf("%s: %v", status, faults)
			}
			continue
		}
		if len(faults) > 0 || s.Status != status || s.Version != 1 || s.OperationID != "op" || s.Rank == 0 {
			t.Errorf("%s: %v, %+v", status, faults, s)
		}
		// What D1 repeats of it later changes nothing.
		for word, p := range places {
			again, _ := Advance(s, clock, Report{OperationID: "op", Status: word, Operation: OperationPending})
			if p.rank <= s.Rank && again.Status != s.Status {
				t.Errorf("%s became %s by %s", status, again.Status, word)
			}
		}
	}
	for word := range places {
		s, faults := state(word)
		reported, _ := Advance(NewState(Shipped), clock, Report{OperationID: "op", Status: word, Operation: OperationPending})
		if len(faults) > 0 || s.Status != reported.Status || s.Rank != reported.Rank || s.StepRank != reported.StepRank || s.EndRank != reported.EndRank {
			t.Errorf("%s: %v, %+v, reported %+v", word, faults, s, reported)
		}
	}
	// A number that the carrier tells of a card that came back, or arrived, is that one's.
	for _, status := range []Status{Delivered, Returned} {
		s, _ := state(string(status))
		s, _ = Advance(s, clock, Report{OperationID: "op", Status: "CARD_SHIPPED", Operation: OperationSuccessful, Parcel: Parcel{TrackingNumber: "n"}})
		if s.Status != status {
			t.Errorf("%s became %s by its tracking number", status, s.Status)
		}
	}
	// People have dealt with what has ended there; what goes on is theirs here.
	for status, needed := range map[Status]bool{Failed: false, Returned: false, Cancelled: false, Exception: true} {
		if s, _ := state(string(status)); (len(s.Attention) > 0) != needed {
			t.Errorf("%s has attention %v", status, s.Attention)
		}
	}
}

func TestDecodeImport(t *testing.T) {
	t.Parallel()
	rules := &Rules{Guard: PANGuard{BINs: []string{"411111"}}, Programs: map[string]*Program{"branch": {CardProductID: "branch", EndsAt: Produced}}}
	for text, want := range map[string]Status{
		`{"cardId":"c","operationId":"op","status":"READY"}`:                                                             Shipped,
		`{"cardId":"c","issuerRequestId":"r","status":"READY","distributionChannel":"INSTANT"}`:                          Produced,
		`{"cardId":"c","issuerRequestId":"r","status":"READY","cardProductId":"branch"}`:                                 Produced,
		`{"cardId":"c","issuerRequestId":"r","status":"READY","cardProductId":"unknown","consumerId":null}`:              Shipped,
		`{"cardId":"c","issuerRequestId":"r","operationId":"op","status":"READY","issuance":"RENEWAL","consumerId":"x"}`: Shipped,
	} {
		if in, faults := DecodeImport([]byte(text), rules); len(faults) > 0 || in.EndsAt != want || in.CardID != "c" {
			t.Errorf("%s: %+v %v", text, in, faults)
		}
	}
	for text, want := range map[string]string{
		`[]`: "", `{"cardId":"c"`: "", `{"cardId":"c","cardId":"c","operationId":"op","status":"READY"}`: "/cardId",
		`{"cardId":"4111111111111111","operationId":"op","status":"READY"}`:           "/cardId",
		`{"cardId":"c","operationId":"4111111111111111","status":"READY"}`:            "/operationId",
		`{"cardId":"c","operationId":"op","status":"4111111111111111"}`:               "/status",
		`{"cardId":"c","operationId":"op","status":"READY","pan":"4111111111111111"}`: "/pan",
		`{"cardId":"c","operationId":1,"status":"READY"}`:                             "/operationId",
		`{"cardId":"c","operationId":null,"status":"READY"}`:                          "",
		`{"cardId":"c","operationId":"op\u0000","status":"READY"}`:                    "/operationId",
	} {
		_, faults := DecodeImport([]byte(text), rules)
		if len(faults) != 1 || faults[0].Pointer != want || strings.Contains(faults[0].Detail, "4111") {
			t.Errorf("%s: %v, want one at %q", text, faults, want)
		}
	}
}

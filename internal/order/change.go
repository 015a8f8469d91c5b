package order

import (
	"encoding/json"
	"fmt"
	"slices"
)

// ChangeType is what is to change of an order that is under way (D1: pull & change).
type ChangeType string

const (
	ChangeCancel                ChangeType = "CANCEL"                  // cancel and destroy
	ChangeAccelerate            ChangeType = "ACCELERATE"              // as soon as possible, by express carrier
	ChangeRedirect              ChangeType = "REDIRECT"                // to a new address
	ChangeAccelerateAndRedirect ChangeType = "ACCELERATE_AND_REDIRECT" // both
)

// ChangeTypes lists them all.
var ChangeTypes = []ChangeType{ChangeCancel, ChangeAccelerate, ChangeRedirect, ChangeAccelerateAndRedirect}

// Redirects tells whether the change has a new address.
func (t ChangeType) Redirects() bool {
	return t == ChangeRedirect || t == ChangeAccelerateAndRedirect
}

// ChangeState is what became of a change.
type ChangeState string

const (
	ChangeRequested ChangeState = "REQUESTED" // stored, waiting to be sent
	ChangeSent      ChangeState = "SENT"      // D1 has it, and has not said yet whether it does it
	ChangeAccepted  ChangeState = "ACCEPTED"  // done
	ChangeRefused   ChangeState = "REFUSED"   // not done
	ChangeExpired   ChangeState = "EXPIRED"   // D1 never said
)

// ChangeReason is why a change has its state.
type ChangeReason string

const (
	// Of ACCEPTED changes.
	ReasonBeforeDispatch ChangeReason = "before-dispatch" // done here: D1 never heard of it

	// Of REFUSED changes.
	ReasonRefused       ChangeReason = "refused-by-bureau" // D1 said no
	ReasonShippedFirst  ChangeReason = "shipped-first"     // the card left before it was cancelled
	ReasonProducedFirst ChangeReason = "produced-first"    // the card was made before it was cancelled
	ReasonOrderEnded    ChangeReason = "order-ended"       // there is no card to be changed any more
	ReasonRetried       ChangeReason = "retried"           // somebody had the order sent after all

	// Of EXPIRED changes.
	ReasonNoAnswer ChangeReason = "no-answer" // D1 got it and never said what it did
	ReasonNotSent  ChangeReason = "not-sent"  // D1 could not be reached in time
)

// MayStillArrive tells that the card of a cancel may still arrive: nobody is certain that
// it was stopped.
func MayStillArrive(t ChangeType, s ChangeState, r ChangeReason) bool {
	return t == ChangeCancel && s != ChangeAccepted && r != ReasonOrderEnded
}

// SettleChange tells what an order that stands at s makes of a change that is not done
// or refused; the state is the old one when it makes nothing of it. What D1 was asked
// besides a cancel may be done until D1 says so, even to a card that has left: its word
// may come later than the news of the shipping.
func SettleChange(t ChangeType, state ChangeState, s State) (ChangeState, ChangeReason) {
	if state == ChangeAccepted || state == ChangeRefused {
		return state, ""
	}
	cancel := t == ChangeCancel
	switch s.Status {
	case Cancelled:
		switch {
		case !cancel:
			return ChangeRefused, ReasonOrderEnded
		case s.Rank == 0:
			return ChangeAccepted, ReasonBeforeDispatch
		}
		return ChangeAccepted, ""
	case Failed, Returned:
		return ChangeRefused, ReasonOrderEnded
	}
	if !s.Ended() || !cancel && state != ChangeRequested {
		return state, ""
	}
	if s.Status == Produced {
		return ChangeRefused, ReasonProducedFirst
	}
	return ChangeRefused, ReasonShippedFirst
}

// AtD1 tells whether D1 has the order and may still change it (D1: "received and not yet
// shipped"). Whether it does, the centre decides by stage.
func (s State) AtD1() bool { return s.Rank > 0 && !s.Ended() }

// ChangePlan is what is done about a change that somebody wants.
type ChangePlan int

const (
	ChangeDone       ChangePlan = iota // at once, here: D1 certainly does not have the order
	ChangeWaits                        // until D1 has the order, or certainly does not
	ChangeGoes                         // to D1
	ChangeTooLate                      // never: the card has left
	ChangeImpossible                   // never: there is no card to be changed
)

// PlanChange says what is done about a change of an order that stands at s. certain tells
// that D1 certainly does not have the order, nor is getting it at this moment.
//
// To accelerate an order that D1 does not have, it is sent sooner, and D1 told when it has
// it; what is also to be redirected gets its address here.
func PlanChange(t ChangeType, s State, certain bool) ChangePlan {
	here := ChangeWaits
	if certain && (t == ChangeCancel || t == ChangeRedirect) {
		here = ChangeDone
	}
	switch s.Status {
	case Accepted, Held:
		return here
	case OutcomeUnknown:
		return ChangeWaits
	case Rejected: // what is left of it is only to be cancelled
		if t == ChangeCancel {
			return here
		}
		return ChangeImpossible
	case Shipped, Delivered, Returned:
		return ChangeTooLate
	}
	if s.AtD1() {
		return ChangeGoes
	}
	return ChangeImpossible
}

// cancelDone is where an order stands that D1 cancelled because it was asked to: it may do
// so until the card leaves.
var cancelDone = place{Cancelled, 59, dead}

// CancelDone is D1's word that it has done what a cancel wanted. It is an end that no step
// before the shipping contradicts.
type CancelDone struct{}

func (CancelDone) apply(s *State) {
	if s.Rank == 0 && (s.Status == Rejected || s.Status == Cancelled) || s.TopRank > cancelDone.rank {
		s.raise(AttentionContradiction)
	}
	if s.EndRank == 0 {
		s.EndRank = cancelDone.rank
	}
	if s.Rank < cancelDone.rank {
		s.Status, s.Rank = cancelDone.status, cancelDone.rank
	}
}

// ChangeBody is what D1 is sent about a change of the order that it knows by
// issuerRequestID. A redirect without an address was done before D1 got the order, so that
// only the rest of it is left.
func ChangeBody(t ChangeType, issuerRequestID string, address []byte) ([]byte, error) {
	if t == ChangeAccelerateAndRedirect && address == nil {
		t = ChangeAccelerate
	}
	body, err := json.Marshal(struct {
		Type               ChangeType      `json:"type"`
		IssuerRequestID    string          `json:"issuerRequestId"`
		NewDeliveryAddress json.RawMessage `json:"newDeliveryAddress,omitempty"`
	}{t, issuerRequestID, address})
	if err != nil {
		return nil, fmt.Errorf("writing a change: %w", err)
	}
	return body, nil
}

// ChangeRequest is a change as core banking asks for it.
type ChangeRequest struct {
	Type               ChangeType
	NewDeliveryAddress *Address
	Note               string // why, for the timeline

	// Canonical is what idempotency compares: the request as RFC 8785 JSON. It is there
	// with faults too that a change may have been taken with: rules change. Else it is nil.
	Canonical []byte
}

// ChangedOrder is what a change has to fit of its order.
type ChangedOrder struct {
	CardProductID string
	Shipped       bool // it is to be sent to an address
}

// DecodeChange reads a change of an order as Decode reads an order: the new address passes
// the very rules that the first one did. With faults the request is nil when text is not a
// JSON object.
func DecodeChange(text []byte, rules *Rules, of ChangedOrder) (*ChangeRequest, Faults) {
	d := newDocument(text, rules)
	defer d.release()
	root, ok := d.root()
	if !ok {
		return nil, d.faults
	}
	d.program = rules.Programs[of.CardProductID]
	r := &ChangeRequest{
		Type:               ChangeType(root.need("type", changeType)),
		NewDeliveryAddress: decodeAddress(&root, "newDeliveryAddress"),
		Note:               root.text("note", visibleText),
	}
	switch given := root.has("newDeliveryAddress"); {
	case !r.Type.Redirects() && given && r.Type != "":
		d.fault("/newDeliveryAddress", CodeNotAllowed, "is for REDIRECT and ACCELERATE_AND_REDIRECT only")
	case !r.Type.Redirects():
	case !of.Shipped:
		d.fault("/type", CodeNotAllowed, "the order is not sent to an address")
	case !given:
		root.require("newDeliveryAddress")
	}
	if a := r.NewDeliveryAddress; a != nil && d.program != nil {
		d.within("/newDeliveryAddress/countryCode", "destinationCountries", d.program.DestinationCountries, a.CountryCode)
	}
	root.closeAs("a change")
	if !slices.ContainsFunc(d.faults, neverTaken) {
		r.Canonical = d.canonical(root.members)
	}
	return r, d.faults
}

var changeType = oneOf(ChangeTypes...)

package order

import (
	"cmp"
	"slices"
	"strings"
)

// Attention marks an order that a human has to look at.
type Attention string

const (
	AttentionSecondCard       Attention = "second-card"
	AttentionContradiction    Attention = "contradiction"
	AttentionAmbiguous        Attention = "ambiguous-operation"
	AttentionForeignOperation Attention = "foreign-operation"
	AttentionConflict         Attention = "conflict"
	AttentionOutcomeUnknown   Attention = "outcome-unknown"
	AttentionUnknownStatus    Attention = "unknown-status"
	AttentionGivenUp          Attention = "given-up"
	AttentionStopTooLate      Attention = "stop-too-late"
	AttentionRejected         Attention = "rejected"
	AttentionException        Attention = "exception"
	AttentionFailed           Attention = "failed"
	AttentionResending        Attention = "resending"
	AttentionUnreadable       Attention = "unreadable"
	AttentionUnapplied        Attention = "unapplied-notification"
	AttentionReturned         Attention = "returned"
	AttentionManyParcels      Attention = "many-parcels"
	AttentionNotShown         Attention = "not-shown"
	AttentionSilent           Attention = "silent"
	AttentionCardDataNeeded   Attention = "card-data-needed"
	AttentionHeldByRule       Attention = "held-by-rule"
	AttentionChangeUnanswered Attention = "change-unanswered"
)

// LaneAttention marks a lane, an issuer's D1, that a human has to look at.
type LaneAttention string

const (
	LanePaused  LaneAttention = "lane-paused"
	LaneStopped LaneAttention = "lane-stopped"
	LaneFailing LaneAttention = "lane-failing"
)

// Advice is what a person is told about an attention.
type Advice struct {
	Detail string // one sentence: what is the matter
	Actor  string // who should act: support, operator, core-banking
	Next   string // the next step
}

// advices holds the text of every attention, the gravest first. All texts for
// people stand here, ready for translation.
var advices = []struct {
	Attention
	Advice
}{
	{AttentionSecondCard, Advice{
		"D1 has a second production operation for this order: a second card may be in the post.",
		"support", "Ask D1 to stop the second operation and have the card that arrives twice destroyed."}},
	{AttentionContradiction, Advice{
		"D1 reported both an end of this order and progress beyond it.",
		"support", "Ask D1 which of the two is true."}},
	{AttentionAmbiguous, Advice{
		"D1 shows operations for this card that may or may not be this order's.",
		"operator", "Ask D1 which operation belongs to this issuerRequestId; nothing is sent again until then."}},
	{AttentionForeignOperation, Advice{
		"D1 answered with an operation that belongs to another order.",
		"operator", "Ask D1 what became of this issuerRequestId."}},
	{AttentionConflict, Advice{
		"D1 answered 409 and shows no operation for this order; it is not sent again.",
		"operator", "Ask D1 what the conflict is; when it does not have the order, retry it."}},
	{AttentionOutcomeUnknown, Advice{
		"It is still unknown whether D1 took this order.",
		"operator", "Check that D1 answers status requests; the order is asked about for as long as it takes."}},
	{AttentionResending, Advice{
		"The order was sent several times, and each time D1 gave no answer and does not show it.",
		"operator", "Ask D1 why it does not answer this order; it is sent again and again until then."}},
	{AttentionGivenUp, Advice{
		"This order was tried for too long and is not tried any more.",
		"operator", "Remove the reason that its last attempt names, then retry the order."}},
	{AttentionStopTooLate, Advice{
		"A hold of this order came when D1 had it already, or D1 did not make the cancel of its batch: the card is being made.",
		"support", "Cancel the order, or let the card come."}},
	{AttentionCardDataNeeded, Advice{
		"The card data of this order was encrypted with a key of D1 that is not in use any more: D1 will not be able to read it.",
		"core-banking", "Retry the order with encryptedData for a key in use."}},
	{AttentionHeldByRule, Advice{
		"The consumer has had as many orders sent within 24 hours as the card product's program allows, so this one is held.",
		"support", "Find out whether the card is wanted: then release the order, else cancel it."}},
	{AttentionChangeUnanswered, Advice{
		"D1 took a change of this order, or could not be reached with it, and never said whether it was made.",
		"support", "Ask D1 what became of the change; until then the card may come as it was ordered. D1's word ends this, also when it comes late."}},
	{AttentionUnreadable, Advice{
		"The sealed content of this order cannot be opened, so it cannot be sent.",
		"operator", "Check the sealing keys in the configuration."}},
	{AttentionUnapplied, Advice{
		"A notification from D1 for this order is stored but could not be applied.",
		"operator", "Look for the error in the log; the order's status may be behind D1's."}},
	{AttentionNotShown, Advice{
		"D1 took this order and does not show it any more.",
		"support", "Ask D1 what became of the order; when it is lost, order the card again."}},
	{AttentionUnknownStatus, Advice{
		"D1 reported a status that this service does not know.",
		"operator", "Ask D1 what the status means."}},
	{AttentionFailed, Advice{
		"D1 could not make this card.",
		"support", "Remove the cause, then reorder the card."}},
	{AttentionReturned, Advice{
		"The card was not delivered: it is on its way back, or back.",
		"support", "Check the address with the cardholder, then reorder the card with it; when it is sent again, the new parcel ends this."}},
	{AttentionManyParcels, Advice{
		"D1 reported more tracking numbers than one card can have; not all of them count.",
		"support", "Ask D1 which parcel has the card."}},
	{AttentionRejected, Advice{
		"D1 refused this order.",
		"core-banking", "Remove the cause that the attempt's error code names and retry the order; when its content must change, order again with a duplicateOverride."}},
	{AttentionException, Advice{
		"D1 has trouble making this card.",
		"support", "Wait for D1, or ask it for the reason."}},
	{AttentionSilent, Advice{
		"D1 was asked about this order several times and has had nothing new to say for too long.",
		"support", "Ask D1 when the card will be made; the order is asked about ever more rarely."}},
}

// laneAdvices holds the same of lanes.
var laneAdvices = map[LaneAttention]Advice{
	LanePaused: {
		"Somebody paused the sending to D1: orders wait.",
		"operator", "Resume the lane when the reason given has passed."},
	LaneStopped: {
		"The sending to D1 stopped by itself: D1 refused different orders as if the set-up were wrong.",
		"operator", "Correct the set-up that the stop's reason points at; one order at a time is tried until D1 accepts one."},
	LaneFailing: {
		"Calls to D1 fail one after the other, so that only a few are tried.",
		"operator", "Look at the reason that the replica gives and make D1 reachable; the sending goes on by itself."},
}

// Advice returns what to tell a person about a.
func (a LaneAttention) Advice() Advice { return laneAdvices[a] }

// LaneAttentions lists them all, the gravest first.
var LaneAttentions = []LaneAttention{LaneStopped, LanePaused, LaneFailing}

// KnownAttention tells whether a is one of Attentions.
func KnownAttention(a Attention) bool { return a.gravity() < len(advices) }

// Attentions returns every Attention there is, the gravest first.
func Attentions() []Attention {
	all := make([]Attention, len(advices))
	for i, row := range advices {
		all[i] = row.Attention
	}
	return all
}

// Advice returns what to tell a person about a.
func (a Attention) Advice() Advice {
	for _, row := range advices {
		if row.Attention == a {
			return row.Advice
		}
	}
	return Advice{}
}

// gravity orders attentions: the lower, the graver.
func (a Attention) gravity() int {
	for i, row := range advices {
		if row.Attention == a {
			return i
		}
	}
	return len(advices)
}

// attentionOf is the attention that comes and goes with a status.
var attentionOf = map[Status]Attention{
	Rejected:  AttentionRejected,
	Exception: AttentionException,
	Failed:    AttentionFailed,
	Returned:  AttentionReturned,
}

// Acknowledge is a person's word that an attention was dealt with. It is not raised again
// until its cause has ended and another one has come.
type Acknowledge struct {
	Attention Attention
	// Operations is every PRODUCE operation seen for the order: one that comes later is
	// another second card.
	Operations []string
}

func (a Acknowledge) apply(s *State) {
	if !slices.Contains(s.Attention, a.Attention) {
		return
	}
	s.drop(a.Attention)
	if a.Attention != AttentionSecondCard {
		s.acknowledge(a.Attention)
		return
	}
	for _, id := range a.Operations {
		if id != s.OperationID {
			s.acknowledge(secondCard(id))
		}
	}
}

func (s *State) acknowledge(a Attention) {
	if !slices.Contains(s.Acknowledged, a) {
		s.Acknowledged = append(s.Acknowledged, a)
	}
}

// secondCard is what stands in State.Acknowledged for one operation beyond the adopted one.
func secondCard(operationID string) Attention {
	return AttentionSecondCard + ":" + Attention(operationID)
}

// HasAcknowledged tells whether a person has dealt with an attention whose cause goes on.
func (s State) HasAcknowledged(a Attention) bool {
	return slices.ContainsFunc(s.Acknowledged, func(done Attention) bool {
		return done == a || a == AttentionSecondCard && strings.HasPrefix(string(done), string(secondCard("")))
	})
}

func (s *State) raiseSecondCard(operationID string) {
	if !slices.Contains(s.Acknowledged, secondCard(operationID)) {
		s.raise(AttentionSecondCard)
	}
}

// raise marks the order, unless a person has dealt with the very same.
func (s *State) raise(a Attention) {
	if !slices.Contains(s.Attention, a) && !slices.Contains(s.Acknowledged, a) {
		s.Attention = append(s.Attention, a)
	}
}

// drop ends attentions whose cause has ended: when it comes again, they do.
func (s *State) drop(gone ...Attention) {
	isGone := func(a Attention) bool { return slices.Contains(gone, a) }
	s.Attention = slices.DeleteFunc(s.Attention, isGone)
	s.Acknowledged = slices.DeleteFunc(s.Acknowledged, isGone)
}

// anotherCause tells whether the order has the status that it had for another reason:
// trouble at another point, or one more parcel that came back.
func (s *State) anotherCause(before State) bool {
	switch {
	case s.Status != before.Status: // which drops it anyway
		return false
	case s.Status == Exception:
		return s.Rank != before.Rank
	case s.Status == Returned:
		return returns(s.sentAndBack()) > returns(before.sentAndBack())
	}
	return false
}

// settleAttention makes the attentions that belong to a status follow it, and sorts: the
// gravest first.
func (s *State) settleAttention(before State) {
	if s.anotherCause(before) {
		s.Acknowledged = slices.DeleteFunc(s.Acknowledged, func(a Attention) bool { return a == attentionOf[s.Status] })
	}
	for status, a := range attentionOf {
		if status == s.Status {
			s.raise(a)
		} else {
			s.drop(a)
		}
	}
	if s.Status != OutcomeUnknown {
		s.drop(AttentionOutcomeUnknown, AttentionAmbiguous, AttentionConflict)
	}
	if !s.Waiting() { // it needs no sending any more
		s.drop(AttentionUnreadable, AttentionResending, AttentionGivenUp)
	}
	if s.Status == Held { // whoever releases it has it tried anew
		s.drop(AttentionResending, AttentionGivenUp)
	}
	if !s.Waiting() && s.Status != Rejected {
		s.drop(AttentionCardDataNeeded)
	}
	if s.Status != Held {
		s.Hold = ""
	}
	if s.Hold == HeldByRule {
		s.raise(AttentionHeldByRule)
	} else {
		s.drop(AttentionHeldByRule)
	}
	if s.Status != before.Status { // the next unknown status is another one
		s.Acknowledged = slices.DeleteFunc(s.Acknowledged, func(a Attention) bool { return a == AttentionUnknownStatus })
	}
	slices.SortFunc(s.Attention, func(a, b Attention) int { return cmp.Compare(a.gravity(), b.gravity()) })
}

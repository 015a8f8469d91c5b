package order

import (
	"slices"
	"time"
)

// State is the part of an order that changes. Only Advance changes it.
type State struct {
	Version        int // 1 when accepted; every change adds one and leaves an event
	Status         Status
	Rank           int    // rank of Status
	StepRank       int    // highest step of production ever reported
	TopRank        int    // highest rank ever reported, failures apart
	EndRank        int    // lowest rank at which D1 reported an end without a card, 0 for none
	OperationID    string // the D1 operation that makes the card, "" before one is known
	EndsAt         Status // the status at which the order has arrived
	Attention      []Attention
	DueDate        Latest // D1's estimate of the shipping date, as D1 wrote it
	ProductionSite Latest

	Hold         HoldReason  // why it is HELD, else ""
	Since        time.Time   // since when it has its status
	DueAt        time.Time   // by when it should have arrived; zero when nothing is known
	Late         bool        // it should have arrived, or left its status, by now
	LateIn       []Status    // where it has been late: no budget makes it late there again
	Acknowledged []Attention // those that a person has dealt with: they are not raised again
	Parcels      []string    // what is known of the parcels: see parcel.go

	touched bool // something that belongs to the order, but not to its state, changed
}

// Latest is a value that D1 repeats and changes as it goes. Reports come in any
// order, so the one of the highest rank counts, at equal rank the greater value.
type Latest struct {
	Value string
	Rank  int
}

func (l *Latest) offer(value string, rank int) {
	if value != "" && (rank > l.Rank || rank == l.Rank && value > l.Value) {
		l.Value, l.Rank = value, rank
	}
}

// NewState is the state of an order that was just accepted.
func NewState(endsAt Status) State {
	return State{Version: 1, Status: Accepted, EndsAt: endsAt}
}

// NewHeldState is the state of an order that was accepted to be kept back.
func NewHeldState(endsAt Status, reason HoldReason) State {
	return State{Version: 1, Status: Held, EndsAt: endsAt, Hold: reason}
}

// Ended tells whether nothing more is expected of the order: its card is no
// longer on its way here.
func (s State) Ended() bool {
	switch s.Status {
	case Failed, Cancelled, Returned, Delivered, Shipped:
		return true
	case Produced:
		return s.EndsAt == Produced
	}
	return false
}

// Made tells whether the card was made, whatever became of it then.
func (s State) Made() bool { return s.StepRank >= produced.rank }

// Waiting tells whether the order still has to be brought to D1.
func (s State) Waiting() bool {
	return s.Status == Accepted || s.Status == Held || s.Status == OutcomeUnknown
}

// ToBeSent tells whether there has to be a message that brings the order to D1.
func (s State) ToBeSent() bool { return s.Status == Accepted || s.Status == OutcomeUnknown }

// Evidence is something learned about an order.
type Evidence interface {
	apply(*State)
}

// Advance returns the state that follows from s and the evidence, and whether
// it differs. It is the only way in which an order's state changes.
// Without evidence it tells what the mere passing of time does to it.
func Advance(s State, clock Clock, evidence ...Evidence) (State, bool) {
	next := s
	next.Attention, next.Acknowledged, next.Parcels = slices.Clone(s.Attention), slices.Clone(s.Acknowledged), slices.Clone(s.Parcels)
	for _, e := range evidence {
		e.apply(&next)
	}
	next.settleSilence(s)
	next.settleAttention(s)
	next.settleTime(s, clock)
	if !next.touched && next.equal(s) {
		return s, false
	}
	next.touched = false
	next.Version++
	return next, true
}

// equal compares all but what follows from the rest and the time: Since, DueAt, LateIn.
func (s State) equal(t State) bool {
	return slices.Equal(s.Attention, t.Attention) &&
		s.Version == t.Version && s.Status == t.Status && s.Rank == t.Rank &&
		s.StepRank == t.StepRank && s.TopRank == t.TopRank && s.EndRank == t.EndRank &&
		s.OperationID == t.OperationID && s.EndsAt == t.EndsAt &&
		s.DueDate == t.DueDate && s.ProductionSite == t.ProductionSite &&
		s.Hold == t.Hold && s.Late == t.Late &&
		slices.Equal(s.Acknowledged, t.Acknowledged) && slices.Equal(s.Parcels, t.Parcels)
}

// LostAnswer is a call to D1 whose outcome is unknown.
type LostAnswer struct{}

func (LostAnswer) apply(s *State) {
	if s.Status == Accepted || s.Status == Held {
		s.Status = OutcomeUnknown
	}
}

// NotFound is proof that D1 does not have an order whose outcome was unknown:
// it may be sent again.
type NotFound struct{}

func (NotFound) apply(s *State) {
	if s.Status == OutcomeUnknown {
		s.Status = Accepted
	}
}

// Refusal is D1's refusal of an order.
type Refusal struct{}

func (Refusal) apply(s *State) {
	if s.Waiting() {
		s.Status = Rejected
	}
}

// Hold keeps an order back. It is for one that D1 certainly does not have.
type Hold struct{ Reason HoldReason }

func (h Hold) apply(s *State) {
	if s.Status == Accepted || s.Status == Held {
		s.Status, s.Hold = Held, h.Reason
	}
}

// HoldReason is why an order is held.
type HoldReason string

const (
	HeldByRequest  HoldReason = "request"  // the order asked for it
	HeldByPerson   HoldReason = "person"   // somebody did it
	HeldByRule     HoldReason = "rule"     // the program allows no more orders of this consumer in a day
	HeldBySchedule HoldReason = "schedule" // it is not to be sent before a certain time
)

// Release lifts the hold that an order has. One whose time has not come waits for it,
// unless that was what it was held by.
type Release struct{ Early bool }

func (r Release) apply(s *State) {
	switch {
	case s.Status != Held:
	case r.Early && s.Hold != HeldBySchedule:
		s.Hold = HeldBySchedule
	default:
		s.Status = Accepted
	}
}

// Cancel ends an order that D1 certainly does not have, and never will.
type Cancel struct{}

func (Cancel) apply(s *State) {
	if s.Status == Accepted || s.Status == Held || s.Status == Rejected && s.Rank == 0 {
		s.Status = Cancelled
	}
}

// Retry starts the sending of an order anew: one that was rejected or given up is to
// be sent, one whose outcome is unknown is to be asked about.
type Retry struct{}

func (Retry) apply(s *State) {
	if s.Status == Rejected && s.Rank == 0 {
		s.Status = Accepted
	}
	s.drop(AttentionGivenUp, AttentionConflict)
	s.touched = true
}

// Retryable tells whether a person may have the sending of the order started anew.
func (s State) Retryable() bool {
	return s.Status == Rejected || s.Status == OutcomeUnknown || slices.Contains(s.Attention, AttentionGivenUp)
}

// NeedsCardData tells whether the order's card data may be replaced although its sending
// needs no new start.
func (s State) NeedsCardData() bool {
	return slices.Contains(s.Attention, AttentionCardDataNeeded) || s.HasAcknowledged(AttentionCardDataNeeded)
}

// Taken is D1's word that it took the order. OperationID may be empty: D1's
// schema leaves it optional, and it is adopted later.
type Taken struct{ OperationID string }

func (t Taken) apply(s *State) {
	if !s.adopt(t.OperationID) {
		return
	}
	s.reach(submitted)
}

// Report is what D1 says of a PRODUCE operation of the order.
type Report struct {
	OperationID string
	Operation   OperationStatus
	Status      string // details.status
	OnHold      bool   // Status is one of the on-hold names of the configuration
	Parcel      Parcel // what it says of the shipment
	DueDate     string
	Site        string
	Now         bool // an answer of productionStatus: D1's word of now, not of some time before
}

// Vocabulary is what D1's documentation leaves open: words that the configuration gives
// a meaning.
type Vocabulary struct {
	OnHold    []string // values of details.status that mean "on hold"
	Delivered []string // the carriers' codes (details.shipment.status) of a delivered parcel
	Returned  []string // the same of one that comes back
}

// OperationStatus is D1's status of an operation, not of the card.
type OperationStatus string

const (
	OperationPending    OperationStatus = "PENDING"
	OperationSuccessful OperationStatus = "SUCCESSFUL"
	OperationFailed     OperationStatus = "FAILED"
)

func (r Report) apply(s *State) {
	s.drop(AttentionNotShown)
	if !s.adopt(r.OperationID) {
		return
	}
	p, known := r.place()
	if r.unknown() {
		s.raise(AttentionUnknownStatus)
	}
	end, ended := r.end(p)
	if ended && end.rank >= p.rank {
		p = end
	}
	if r.Now && known {
		s.lift(p)
	}
	s.reach(p)
	if ended {
		s.reach(end)
	}
	s.DueDate.offer(r.DueDate, p.rank)
	s.ProductionSite.offer(r.Site, p.rank)
	s.carry(p, r.Parcel)
}

// place finds where details.status puts the order. Any sign of the operation shows that
// D1 took the order, and an unknown status shows no more than that.
func (r Report) place() (p place, known bool) {
	if r.OnHold {
		return onHold, true
	}
	if p, known = places[r.Status]; known {
		return p, true
	}
	return submitted, false
}

func (r Report) unknown() bool {
	_, known := r.place()
	return !known && r.Status != ""
}

// HasUnknownStatus tells whether D1 reports a status that has no meaning here.
func HasUnknownStatus(e Evidence) bool {
	reported, ok := e.(interface{ unknown() bool })
	return ok && reported.unknown()
}

// end is the end that a failed operation means for an order at p. A card that was
// cancelled or came back has an end of its own; one that was made all the same is both.
func (r Report) end(p place) (place, bool) {
	switch {
	case r.Operation != OperationFailed || p.status == Cancelled || p.status == Returned:
		return place{}, false
	case p.status == Exception:
		return place{Failed, p.rank, dead}, true
	}
	return failed, true
}

// adopt binds the order to a D1 operation. A second operation for the same
// order is a second card: it is flagged and never moves the status.
func (s *State) adopt(operationID string) bool {
	switch {
	case operationID == "" || operationID == s.OperationID:
		return true
	case s.OperationID == "":
		s.OperationID = operationID
		s.drop(AttentionForeignOperation)
		return true
	}
	s.raiseSecondCard(operationID)
	return false
}

// reach moves the order to p if p outranks where it stands. An end and
// progress beyond it contradict each other, whichever was heard of first.
func (s *State) reach(p place) {
	switch p.kind {
	case step:
		s.StepRank = max(s.StepRank, p.rank)
	case away:
		s.StepRank = max(s.StepRank, shipped.rank)
	}
	if p.status != Failed {
		s.TopRank = max(s.TopRank, p.rank)
	}
	if p.kind == dead && (s.EndRank == 0 || p.rank < s.EndRank) {
		s.EndRank = p.rank
	}
	endedHere := s.Rank == 0 && (s.Status == Rejected || s.Status == Cancelled)
	if endedHere || s.EndRank > 0 && s.TopRank > s.EndRank {
		s.raise(AttentionContradiction)
	}
	if p.rank > s.Rank || p.rank == s.Rank && p.status == Failed {
		s.Status, s.Rank = p.status, p.rank
	}
}

// lift ends a side state when D1 says now that production is at a step, or beside or at
// an end beyond the steps. It never lowers a step that was reached before.
func (s *State) lift(p place) {
	if (s.Status == OnHold || s.Status == Exception) && (p.kind == step || p.rank > s.StepRank) {
		s.Rank, s.Status = s.StepRank, stepAt(s.StepRank)
	}
}

// Operations is every PRODUCE operation that was ever seen for the order.
type Operations struct{ IDs []string }

func (o Operations) apply(s *State) {
	if len(o.IDs) > 0 && s.OperationID == "" && (s.Status == Rejected || s.Status == Cancelled) {
		s.raise(AttentionContradiction) // D1 has the order all the same
	}
	for _, id := range o.IDs {
		if s.OperationID != "" && id != s.OperationID {
			s.raiseSecondCard(id)
		}
	}
}

// Details is a change of what belongs to the order beside its state, as a
// shipment: the order has a new version.
type Details struct{}

func (Details) apply(s *State) { s.touched = true }

// Cured ends an attention whose reason is gone.
type Cured struct{ Attention Attention }

func (c Cured) apply(s *State) { s.drop(c.Attention) }

// Notice is something about an order that needs a human.
type Notice struct{ Attention Attention }

func (n Notice) apply(s *State) { s.raise(n.Attention) }

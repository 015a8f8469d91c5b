package order

import (
	"slices"
	"strconv"
	"strings"
)

// Parcel is what a report says of where a parcel is.
type Parcel struct {
	TrackingNumber string // "" while there is none
	Status         Status // Delivered or Returned as the carrier's code says, "" for anything else
}

// Types of tracking: what D1's tracking hub was asked to follow.
const (
	TrackProduction = "PRODUCTION"
	TrackShipment   = "SHIPMENT"
	TrackReturn     = "RETURN"
)

// Tracking is what D1's tracking hub says of the order's card (STANDALONE_TRACKING). Its
// operation makes no card: the order never adopts it.
type Tracking struct {
	Operation OperationStatus
	Type      string // details.trackingType
	Status    string // details.status
	Parcel    Parcel
}

// tracked is what the tracking hub's words mean once its operation is SUCCESSFUL, by
// trackingType and details.status. PENDING says that following has begun, FAILED that
// it did not; neither says where the card is.
var tracked = map[[2]string]place{
	{TrackProduction, "CARD_SHIPPED"}: shipped,
	{TrackShipment, "CARD_SHIPPED"}:   shipped,
	{TrackShipment, ""}:               shipped, // its carrier has it: else there were nothing to tell
	{TrackShipment, "CARD_RETURNED"}:  returned,
	{TrackReturn, "CARD_RETURNED"}:    returned,
}

func (t Tracking) apply(s *State) {
	p := tracked[[2]string{t.Type, t.Status}]
	if t.unknown() {
		s.raise(AttentionUnknownStatus)
	}
	if t.Operation != OperationSuccessful {
		p = place{}
	}
	if t.Type != TrackReturn || p == returned {
		s.carry(p, t.Parcel)
	}
}

func (t Tracking) unknown() bool {
	_, known := tracked[[2]string{t.Type, t.Status}]
	return !known && t.Status != ""
}

// carry notes what a report that puts the order at p says of its parcel. Before it is
// handed to the carrier a number is only an announcement.
func (s *State) carry(p place, parcel Parcel) {
	if p.rank < shipped.rank && parcel.Status == "" {
		return
	}
	if p == returned {
		// The number may be that of the way back, and its carrier delivers there too.
		s.hear(parcel.TrackingNumber, returned)
		s.settleParcels()
		return
	}
	s.hear(parcel.TrackingNumber, shipped)
	switch parcel.Status {
	case Delivered:
		s.hear(parcel.TrackingNumber, delivered)
	case Returned:
		s.hear(parcel.TrackingNumber, returned)
	}
	s.settleParcels()
}

// State.Parcels is the set of all that was ever heard of parcels, as "number=rank" and
// sorted. What names no number is about one parcel, nobody knows which.

// maxParcels bounds the tracking numbers of an order that count. More than a few is no
// card's doing. Those that come first in the alphabet are kept: these, too, are the
// same in whatever order they are heard of.
const maxParcels = 8

// hear adds a word about a parcel to those that are known.
func (s *State) hear(number string, p place) {
	s.reach(p)
	word := number + "=" + strconv.Itoa(p.rank)
	if slices.Contains(s.Parcels, word) {
		return
	}
	s.Parcels = append(s.Parcels, word)
	slices.Sort(s.Parcels)
	var numbers []string
	for _, known := range s.Parcels {
		if n, _ := parseParcel(known); n != "" && !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) > maxParcels {
		s.raise(AttentionManyParcels)
		last := slices.Max(numbers)
		s.Parcels = slices.DeleteFunc(s.Parcels, func(known string) bool {
			n, _ := parseParcel(known)
			return n == last
		})
	}
}

// settleParcels puts the order where its parcels are: at the furthest of those that did
// not come back, and RETURNED when all did. So a new number beside a parcel that came
// back is a re-shipment, whichever was heard of first.
//
// A return that names none of the numbers that were sent (none at all, or that of the way
// back) is about one of them. Words are taken to be about as few parcels and as few
// returns as they allow: a card that may have come back is looked after by somebody, and
// one return told by carrier and tracking hub does not hide the parcel that followed.
func (s *State) settleParcels() {
	sent, back := s.sentAndBack()
	if len(sent)+len(back) == 0 {
		return
	}
	parcels, furthest := 0, 0
	for number, rank := range sent {
		if number != "" {
			parcels++
		}
		if !back[number] {
			furthest = max(furthest, rank)
		}
	}
	p := returned
	if max(parcels, 1) > returns(sent, back) {
		p = shipped
		if furthest == delivered.rank {
			p = delivered
		}
	}
	s.Status, s.Rank = p.status, p.rank
}

// sentAndBack is how far each parcel was sent, and which came back, by number.
func (s State) sentAndBack() (sent map[string]int, back map[string]bool) {
	sent, back = map[string]int{}, map[string]bool{}
	for _, word := range s.Parcels {
		if number, rank := parseParcel(word); rank == returned.rank {
			back[number] = true
		} else {
			sent[number] = max(sent[number], rank)
		}
	}
	return sent, back
}

// returns is how many there were: no more than the words need.
func returns(sent map[string]int, back map[string]bool) int {
	known, others, unnamed := 0, 0, 0
	for number := range back {
		switch {
		case number == "":
			unnamed = 1
		case sent[number] > 0:
			known++
		default:
			others++
		}
	}
	return max(known, others, unnamed)
}

// Parcel is where the parcel with a tracking number is: Shipped, Delivered or Returned,
// "" when that is not known.
func (s State) Parcel(number string) Status {
	furthest := 0
	for _, word := range s.Parcels {
		if known, rank := parseParcel(word); known == number {
			furthest = max(furthest, rank)
		}
	}
	switch {
	case furthest == 0:
		return ""
	case furthest == returned.rank || s.Status == Returned: // then all came back
		return Returned
	case furthest == delivered.rank:
		return Delivered
	}
	return Shipped
}

func parseParcel(word string) (number string, rank int) {
	i := strings.LastIndexByte(word, '=')
	rank, _ = strconv.Atoi(word[i+1:]) // written by hear
	return word[:max(i, 0)], rank
}

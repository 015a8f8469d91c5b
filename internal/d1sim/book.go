package d1sim

import (
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
)

// productionPath is every status of a card in the order in which they are reached.
var productionPath = []string{CardProdRequested, DataException, DataPrepared, CardProdReady, CardProdOngoing,
	CardProdException, CardProdDone, CardShipped}

// hurry is how many times as fast a card goes that was accelerated.
const hurry = 4

// book is all that the simulator knows of cards and requests; a reset opens a new one. Guarded by Sim.mu.
type book struct {
	cards     []*card
	byRequest map[requestKey]*card // the first card of an issuerRequestId
	byCard    map[cardKey][]*card  // orders of a card, oldest first

	walking  []*card // under way, the one that moved longest ago first
	hurrying []*card // the same of those that were accelerated
	stopped  []*card // under way, but at Settings.StopAt

	changes   []*change // that were taken, oldest first
	undecided []*change // of them, those that the centre has not decided

	queued     map[string][]*notification // by issuer, oldest first
	late       []lateNotification         // held back, the oldest first
	inFlight   int                        // notifications in a call right now
	deliveries []Delivery

	scripts []*Script
	history []Request

	drawn  map[drawKey]int // requests for which a fault was drawn
	faults map[Fault]int   // met so far
}

type requestKey struct{ issuerID, issuerRequestID string }
type cardKey struct{ issuerID, cardID string }
type drawKey struct {
	kind         Kind
	issuerID, id string
}

// card is one made card: one order that was accepted.
type card struct {
	issuerID   string
	channel    string
	ships      bool
	op         Operation
	acceptedAt time.Time
	movedAt    time.Time
	step       string // of productionPath, the last one reached: a Move may lead elsewhere
	city       string // of the delivery address, all that is kept of it
	hurried    bool   // accelerated
	carried    int    // how many of Settings.CarrierStatuses its parcel has had
}

// lateNotification is a notification that Settings.Faults hold back.
type lateNotification struct {
	issuerID string
	due      time.Time
	*notification
}

func newBook() *book {
	return &book{
		byRequest: make(map[requestKey]*card),
		byCard:    make(map[cardKey][]*card),
		queued:    make(map[string][]*notification),
		drawn:     make(map[drawKey]int),
		faults:    make(map[Fault]int),
	}
}

// make makes a card for an order and takes it to its first status.
func (b *book) make(issuerID, cardID string, o order, now time.Time, set Settings) *card {
	c := &card{
		issuerID:   issuerID,
		channel:    o.channel,
		ships:      o.ships(),
		city:       o.city,
		acceptedAt: now,
		op: Operation{
			OperationID:     uuid.NewString(),
			Operation:       "PRODUCE",
			StartTime:       told(now, set),
			CardID:          cardID,
			IssuerRequestID: o.issuerRequestID,
			Details: Details{
				DueDate:        told(now, set).AddDate(0, 0, 1).Format(time.DateOnly),
				ProductionSite: "SIMULATED-CENTRE",
			},
		},
	}
	b.cards = append(b.cards, c)
	b.byCard[cardKey{issuerID, cardID}] = append(b.byCard[cardKey{issuerID, cardID}], c)
	if key := (requestKey{issuerID, o.issuerRequestID}); o.issuerRequestID != "" && b.byRequest[key] == nil {
		b.byRequest[key] = c
	}
	b.reach(c, CardProdRequested, now, set)
	for _, operation := range set.CardOperations {
		b.tellOther(issuerID, Operation{Operation: operation, CardID: cardID}, now, set)
	}
	return c
}

// walkDue moves every card that is due one step on, and tells how many moved and when the next one is due.
func (b *book) walkDue(now time.Time, set Settings) (moved int, next time.Time) {
	interval := time.Duration(set.StepInterval)
	moved, next = b.walkLine(&b.walking, interval, now, set)
	hurried, soon := b.walkLine(&b.hurrying, interval/hurry, now, set)
	return moved + hurried, earlier(next, soon)
}

func (b *book) walkLine(line *[]*card, interval time.Duration, now time.Time, set Settings) (moved int, next time.Time) {
	for len(*line) > 0 {
		c := (*line)[0]
		if due := c.movedAt.Add(interval); due.After(now) {
			return moved, due
		}
		*line = (*line)[1:]
		if c.followed(set) {
			b.carry(c, now, set)
		} else {
			b.reach(c, c.next(set.FailAt), now, set)
		}
		moved++
	}
	return moved, time.Time{}
}

// earlier is the earlier of two times, of which a zero one is none.
func earlier(s, t time.Time) time.Time {
	if s.IsZero() || !t.IsZero() && t.Before(s) {
		return t
	}
	return s
}

// next is the status after the present one.
func (c *card) next(fail *FailAt) string {
	reached := slices.Index(productionPath, c.step)
	for _, status := range productionPath[reached+1:] {
		exception := status == DataException || status == CardProdException
		if !exception || fail.hits(status, &c.op) {
			return status
		}
	}
	return c.step
}

// reach puts a card into a status, queues the notification, and lines the card up for its next step.
func (b *book) reach(c *card, status string, now time.Time, set Settings) {
	op := &c.op
	c.movedAt, c.step = now, status
	op.Status = OperationPending
	op.Details.Status = status
	op.Details.Reason, op.ErrorCode, op.Error = "", "", ""

	switch {
	case status == DataException || status == CardProdException:
		op.Details.Reason = set.FailAt.Reason
		if op.Status = set.FailAt.OperationStatus; op.Status == OperationFailed {
			op.ErrorCode, op.Error = status, set.FailAt.Reason
		}
	case status == CardProdDone && !c.ships:
		op.Status = OperationSuccessful
	case status == CardShipped:
		op.Status = OperationSuccessful
		c.handOver()
	}
	if op.Status != OperationPending {
		end := told(now, set)
		op.EndTime = &end
	}

	b.tellCard(c, now, set)
	b.lineUp(c, set)
}

// Move is a status that production does not lead to by itself, as one of D1's on-hold states or CARD_PROD_CANCELED, or
// leads to later.
type Move struct {
	// OperationID names the card. Required.
	OperationID string `json:"operationId"`
	// Status is details.status from now on: any text. Required.
	Status string `json:"status"`
	// OperationStatus is the operation's. Default PENDING: production goes on from where it was after
	// Settings.StepInterval; any other ends it.
	OperationStatus string `json:"operationStatus,omitempty"`
	// Reason is told in details.reason. Default none.
	Reason string `json:"reason,omitempty"`
	// NewParcel sends the card again: under a new tracking number.
	NewParcel bool `json:"newParcel,omitempty"`
	// Shipment is told in details.shipment from now on: what is given of it replaces what was told. Default as it was.
	Shipment *Shipment `json:"shipment,omitempty"`
}

// Move puts a card into a status and queues the notification of it.
func (s *Sim) Move(m Move) error {
	defaultTo(&m.OperationStatus, OperationPending)
	if m.Status == "" {
		return errors.New("status: is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.book.cards, func(c *card) bool { return c.op.OperationID == m.OperationID })
	if i < 0 {
		return errors.New("operationId: no card was made by it")
	}
	c, now := s.book.cards[i], time.Now()
	c.movedAt = now
	c.op.Status, c.op.EndTime = m.OperationStatus, nil
	c.op.Details.Status, c.op.Details.Reason = m.Status, m.Reason
	if m.NewParcel || c.op.Details.Shipment == nil && (m.Status == CardShipped || m.Shipment != nil) {
		c.handOver()
	}
	if m.Shipment != nil {
		c.op.Details.Shipment = c.op.Details.Shipment.with(*m.Shipment)
	}
	if m.OperationStatus != OperationPending {
		end := told(now, s.settings)
		c.op.EndTime = &end
	}
	s.book.tellCard(c, now, s.settings)
	s.book.takeOut(c)
	s.book.lineUp(c, s.settings)
	s.announce()
	return nil
}

// takeOut takes a card out of its line.
func (b *book) takeOut(c *card) {
	isIt := func(other *card) bool { return other == c }
	for _, line := range []*[]*card{&b.walking, &b.hurrying, &b.stopped} {
		*line = slices.DeleteFunc(*line, isIt)
	}
}

// lineUp gives a card its place: walking, stopped, or at its end and in no line.
func (b *book) lineUp(c *card, set Settings) {
	switch {
	case c.op.Status != OperationPending && !c.followed(set):
	case c.step == set.StopAt:
		b.stopped = append(b.stopped, c)
	case c.hurried:
		b.hurrying = append(b.hurrying, c)
	default:
		b.walking = append(b.walking, c)
	}
}

// lineUpAgain follows a change of the settings.
func (b *book) lineUpAgain(set Settings) {
	underWay := slices.Concat(b.stopped, b.walking, b.hurrying)
	slices.SortStableFunc(underWay, func(x, y *card) int { return x.movedAt.Compare(y.movedAt) })
	b.walking, b.hurrying, b.stopped = nil, nil, nil
	for _, c := range underWay {
		b.lineUp(c, set)
	}
}

// told is a time as the bureau's own clock shows it.
func told(now time.Time, set Settings) time.Time {
	return now.Add(time.Duration(set.ClockSkew)).UTC().Truncate(time.Millisecond)
}

// newShipment is by express when the card was accelerated.
func newShipment(express bool) *Shipment {
	number, carrier := "SIM"+uuid.NewString()[:8], "dhl"
	if express {
		carrier = "chronopost-france"
	}
	return &Shipment{
		Carrier:        carrier,
		TrackingNumber: number,
		Status:         "HANDED_OVER",
		Message:        "handed to the carrier",
		TrackingURL:    "https://tracking.d1sim.invalid/" + number,
	}
}

// Card is a made card, as the management port shows it.
type Card struct {
	IssuerID            string    `json:"issuerId"`
	CardID              string    `json:"cardId"`
	IssuerRequestID     string    `json:"issuerRequestId,omitempty"`
	OperationID         string    `json:"operationId"`
	DistributionChannel string    `json:"distributionChannel"`
	Status              string    `json:"status"`          // of the card: CARD_PROD_READY, ...
	OperationStatus     string    `json:"operationStatus"` // PENDING, SUCCESSFUL, FAILED
	StartTime           time.Time `json:"startTime"`
	Reason              string    `json:"reason,omitempty"`         // of an exception
	TrackingNumber      string    `json:"trackingNumber,omitempty"` // once shipped
	DeliveryCity        string    `json:"deliveryCity,omitempty"`   // all that is kept of the address
	Accelerated         bool      `json:"accelerated,omitempty"`
}

func (c *card) view() Card {
	view := Card{
		IssuerID:            c.issuerID,
		CardID:              c.op.CardID,
		IssuerRequestID:     c.op.IssuerRequestID,
		OperationID:         c.op.OperationID,
		DistributionChannel: c.channel,
		Status:              c.op.Details.Status,
		OperationStatus:     c.op.Status,
		StartTime:           c.op.StartTime,
		Reason:              c.op.Details.Reason,
		DeliveryCity:        c.city,
		Accelerated:         c.hurried,
	}
	if c.op.Details.Shipment != nil {
		view.TrackingNumber = c.op.Details.Shipment.TrackingNumber
	}
	return view
}

// Cards lists the cards made since the last reset, oldest first: one for each operation, so a request that made two
// cards is there twice.
func (s *Sim) Cards() []Card { return s.cardsThat(func(*card) bool { return true }) }

// CardsOf lists the cards made for an issuer.
func (s *Sim) CardsOf(issuerID string) []Card {
	return s.cardsThat(func(c *card) bool { return c.issuerID == issuerID })
}

func (s *Sim) cardsThat(fit func(*card) bool) []Card {
	s.mu.Lock()
	defer s.mu.Unlock()
	views := make([]Card, 0, len(s.book.cards))
	for _, c := range s.book.cards {
		if fit(c) {
			views = append(views, c.view())
		}
	}
	return views
}

// CardCounts tells how many cards were made for each issuerRequestId since the last reset: more than one is a card too
// many. Orders without issuerRequestId count under "".
func (s *Sim) CardCounts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[string]int)
	for _, c := range s.book.cards {
		counts[c.op.IssuerRequestID]++
	}
	return counts
}

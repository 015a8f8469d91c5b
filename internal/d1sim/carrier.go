package d1sim

import (
	"errors"
	"time"

	"github.com/google/uuid"
)

// The types of tracking: details.trackingType of a STANDALONE_TRACKING.
const (
	TrackProduction = "PRODUCTION"
	TrackShipment   = "SHIPMENT"
	TrackReturn     = "RETURN"
)

// followed tells whether the carrier of a shipped card has more to say.
func (c *card) followed(set Settings) bool {
	return c.op.Status == OperationSuccessful && c.op.Details.Status == CardShipped && c.carried < len(set.CarrierStatuses)
}

// carry tells what the carrier says next of a card.
func (b *book) carry(c *card, now time.Time, set Settings) {
	shipment := *c.op.Details.Shipment
	shipment.Status, shipment.Message = set.CarrierStatuses[c.carried], ""
	c.op.Details.Shipment = &shipment
	c.movedAt = now
	c.carried++
	b.tell(c.issuerID, c.op, CardShipped+" "+shipment.Status, now, set)
	b.lineUp(c, set)
}

// handOver gives a card a new parcel.
func (c *card) handOver() {
	c.op.Details.Shipment, c.carried = newShipment(c.hurried), 0
}

// with returns the shipment with the members that another one gives.
func (s Shipment) with(given Shipment) *Shipment {
	override := func(member *string, value string) {
		if value != "" {
			*member = value
		}
	}
	override(&s.Carrier, given.Carrier)
	override(&s.TrackingNumber, given.TrackingNumber)
	override(&s.Status, given.Status)
	override(&s.Message, given.Message)
	override(&s.TrackingURL, given.TrackingURL)
	return &s
}

// Tell queues the notification of an operation that no order leads to, as STANDALONE_TRACKING, CREATE or ACTIVATE, and
// returns its operationId. What is left out of it: the operationId is a new one, the status SUCCESSFUL, the times are now.
func (s *Sim) Tell(issuerID string, op Operation) (operationID string, err error) {
	if s.issuers[issuerID] == nil {
		return "", errors.New("issuerId: is not configured")
	}
	if op.Operation == "" {
		return "", errors.New("operation: is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	operationID = s.book.tellOther(issuerID, op, time.Now(), s.settings)
	s.announce()
	return operationID, nil
}

// tellOther queues the notification of an operation that makes no card.
func (b *book) tellOther(issuerID string, op Operation, now time.Time, set Settings) (operationID string) {
	at := told(now, set)
	defaultTo(&op.OperationID, uuid.NewString())
	defaultTo(&op.Status, OperationSuccessful)
	defaultTo(&op.StartTime, at)
	if op.EndTime == nil && op.Status != OperationPending {
		op.EndTime = &at
	}
	b.tell(issuerID, op, op.Operation+" "+op.Details.Status+" "+op.Status, now, set)
	return op.OperationID
}

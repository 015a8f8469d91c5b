package store

import (
	"github.com/google/uuid"

	"cardorder/internal/order"
)

// ChangeMessage is the change that a message of KindChange brings to D1; its body is the
// message's.
type ChangeMessage struct {
	ID   uuid.UUID
	Type order.ChangeType
}

// ChangeAnswer is what D1 answered to a change.
type ChangeAnswer struct {
	Taken       bool   // it has it; whether it does it, a notification tells
	OperationID string // of the change, "" when D1 named none
	Reason      string // why it was refused, of a closed set
}

// changeReported is told what D1 says of a change of a locked order (UPDATE_ORDER).
func (a *advances) changeReported(*lockedOrder, *arrival) {}

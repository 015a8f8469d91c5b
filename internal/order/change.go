package order

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

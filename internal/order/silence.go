package order

import "slices"

// NotShown is D1's clear word that it does not have an order that it took: a difference
// between the two sides that only people can settle.
type NotShown struct{}

func (NotShown) apply(s *State) {
	if s.Rank > 0 {
		s.raise(AttentionNotShown)
	}
}

// Silence is that D1 was asked about an order again and again, for longer than its program
// allows, and had nothing new to say.
type Silence struct{}

func (Silence) apply(s *State) { s.raise(AttentionSilent) }

// settleSilence ends the attentions that news end. Nothing more is expected of an order
// that has ended.
func (s *State) settleSilence(before State) {
	if s.Ended() || s.Waiting() || !s.sameWord(before) {
		s.drop(AttentionSilent)
	}
	if s.Ended() || s.Waiting() {
		s.drop(AttentionNotShown)
	}
}

// sameWord tells whether D1 has said the same of both states.
func (s State) sameWord(t State) bool {
	return s.Status == t.Status && s.Rank == t.Rank && s.StepRank == t.StepRank && s.TopRank == t.TopRank && s.EndRank == t.EndRank &&
		s.OperationID == t.OperationID && s.DueDate == t.DueDate && s.ProductionSite == t.ProductionSite &&
		slices.Equal(s.Parcels, t.Parcels)
}

// OnlyTime tells whether nothing but the passing of time has made one version of an order
// of the one before.
func (s State) OnlyTime(before State) bool {
	byTime := func(a Attention) bool { return a == AttentionSilent }
	timeless := func(list []Attention) []Attention { return slices.DeleteFunc(slices.Clone(list), byTime) }
	return (s.Late != before.Late || slices.Contains(s.Attention, AttentionSilent) && !slices.Contains(before.Attention, AttentionSilent)) &&
		s.sameWord(before) && slices.Equal(timeless(s.Attention), timeless(before.Attention))
}

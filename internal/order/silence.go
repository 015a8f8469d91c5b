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

// News is that D1 told something new of what belongs to the order beside its state, as a
// shipment: it is not silent, and the order has a new version.
type News struct{}

func (News) apply(s *State) {
	s.touched = true
	s.drop(AttentionSilent)
}

// settleSilence ends the attentions that news end. Nothing more is expected of an order
// that has ended.
func (s *State) settleSilence(before State) {
	unknown := slices.Contains(s.Attention, AttentionUnknownStatus) && !slices.Contains(before.Attention, AttentionUnknownStatus)
	if s.Ended() || s.Waiting() || !s.sameWord(before) || unknown {
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
// of the one before: it is late, or was silent for too long.
func (s State) OnlyTime(before State) bool {
	silent := func(a Attention) bool { return a == AttentionSilent }
	others := func(list []Attention) []Attention { return slices.DeleteFunc(slices.Clone(list), silent) }
	byTime := s.Late != before.Late || slices.ContainsFunc(s.Attention, silent) && !slices.ContainsFunc(before.Attention, silent)
	return byTime && s.sameWord(before) && slices.Equal(others(s.Attention), others(before.Attention))
}

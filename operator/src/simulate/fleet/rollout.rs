//! How workers come, change their profile and go: the strategies of a switch, and scaling.

use modelprofile_api::Strategy;

use super::event::What;
use super::{Fleet, Phase, Worker};
use crate::simulate::replica::Replica;

impl Fleet<'_> {
    /// Begins a change of profile, as the manifest's strategy carries it out.
    pub(super) fn switch(&mut self, to: usize) {
        if self.target.is_some() || to == self.rung {
            return;
        }
        self.outcome.switches += 1;
        self.target = Some(to);
        let places: Vec<usize> = self.ready().collect();
        match self.scenario.spec.switching.strategy {
            Strategy::InPlace => {
                for place in places {
                    self.on(place, |replica, now, rungs, done| replica.change_to(to, now, rungs, done));
                }
            }
            Strategy::Surge => {
                for _ in 0..self.replicas {
                    let place = self.add(Phase::Starting, to, true);
                    self.load(place, to);
                }
            }
            Strategy::Recreate => {
                // All at once, or the last to stop would get everybody's requests.
                for place in &places {
                    if let Some(worker) = &mut self.workers[*place] {
                        worker.phase = Phase::Restarting;
                    }
                }
                for place in places {
                    self.hand_over(place);
                }
            }
        }
    }

    /// Ends a change of profile whose last worker has made it.
    pub(super) fn settle_switch(&mut self) {
        let Some(target) = self.target else { return };
        let workers = || self.workers.iter().flatten();
        if workers().any(|worker| worker.surge) {
            if workers().any(|worker| worker.surge && worker.phase == Phase::Starting) {
                return;
            }
            let old: Vec<usize> = (0..self.workers.len())
                .filter(|place| self.workers[*place].as_ref().is_some_and(|worker| !worker.surge))
                .collect();
            for worker in self.workers.iter_mut().flatten() {
                worker.surge = false;
            }
            self.rung = target;
            self.target = None;
            for place in old {
                self.remove(place);
            }
            return;
        }
        let made = |worker: &Worker| match worker.phase {
            Phase::Ready => worker.replica.rung() == target && !worker.replica.changes(),
            Phase::Draining => true,
            Phase::Starting | Phase::Restarting => false,
        };
        if workers().all(made) {
            self.rung = target;
            self.target = None;
        }
    }

    /// Adds workers, or takes those with the fewest requests out of traffic.
    pub(super) fn scale(&mut self, replicas: u32) {
        self.outcome.scalings += 1;
        self.replicas = replicas;
        let exist: Vec<usize> = (0..self.workers.len())
            .filter(|place| self.workers[*place].as_ref().is_some_and(|w| w.phase != Phase::Draining && !w.surge))
            .collect();
        for _ in exist.len()..replicas as usize {
            let place = self.add(Phase::Starting, self.rung, false);
            self.load(place, self.rung);
        }
        if exist.len() > replicas as usize {
            let mut by_load = exist.clone();
            by_load.sort_by_key(|place| {
                self.workers[*place]
                    .as_ref()
                    .map_or(0, |w| if w.phase == Phase::Starting { 0 } else { 1 + w.replica.outstanding() })
            });
            for place in by_load.into_iter().take(exist.len() - replicas as usize) {
                self.remove(place);
            }
        }
    }

    /// A new worker; the place that it has.
    pub(super) fn add(&mut self, phase: Phase, rung: usize, surge: bool) -> usize {
        let replica = Replica::new(rung, &self.scenario.rungs);
        let worker = Worker { replica, phase, born: self.now, surge, epoch: 0 };
        // The place of a worker that is gone stays empty, so that its last events mean nobody else.
        self.workers.push(Some(worker));
        self.workers.len() - 1
    }

    /// Lets a worker load a rung, in the time that takes.
    pub(super) fn load(&mut self, place: usize, rung: usize) {
        if let Some(worker) = &mut self.workers[place] {
            worker.phase = Phase::Starting;
        }
        self.push(self.now + self.scenario.load_seconds[rung], What::Loaded { worker: place });
    }

    /// A worker has its weights and takes requests.
    pub(super) fn loaded(&mut self, place: usize) {
        let rung = self.target.unwrap_or(self.rung);
        let Some(worker) = self.workers[place].as_mut().filter(|worker| worker.phase == Phase::Starting) else {
            return;
        };
        worker.phase = Phase::Ready;
        if worker.replica.rung() != rung {
            worker.replica.restart(rung, &self.scenario.rungs);
        }
        self.settle_switch();
        for sequence in std::mem::take(&mut self.orphans) {
            self.route(sequence);
        }
    }

    /// Takes a worker out of traffic; it ends what it has begun.
    fn remove(&mut self, place: usize) {
        let Some(worker) = &mut self.workers[place] else { return };
        if worker.phase == Phase::Starting {
            if let Some(worker) = self.workers[place].take() {
                self.count(&worker);
            }
            return;
        }
        worker.phase = Phase::Draining;
        self.hand_over(place);
    }

    /// Gives what has not begun on a worker to the others.
    fn hand_over(&mut self, place: usize) {
        let Some(worker) = &mut self.workers[place] else { return };
        let waiting: Vec<_> = worker.replica.give_back().collect();
        for sequence in waiting {
            self.route(sequence);
        }
        self.on(place, |_, _, _, _| ());
    }
}

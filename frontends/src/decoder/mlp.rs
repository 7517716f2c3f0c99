//! The MLP, plain or gated, and the choice between it and experts.

use t3c_ir::{Ref, ScalarBody, Val};

use super::{Role, config::Activation, layer::Place};
use crate::{Error, nn};

impl Activation {
    /// The function on one element.
    pub(super) fn function(self) -> fn(&mut ScalarBody, Ref) -> Ref {
        match self {
            Self::Silu => nn::silu,
            Self::Gelu => nn::gelu,
            Self::GeluTanh => nn::gelu_tanh,
            Self::QuickGelu => nn::quick_gelu,
            Self::Relu => nn::relu,
        }
    }
}

impl<'c, 'a> Place<'_, 'c, 'a> {
    /// What the MLP or the experts add to the residual stream, without its bias.
    pub(super) fn feed_forward(&self, normal: Val<'c, 'a>) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let config = &self.decoder.config;
        if let Some(experts) = config.experts.as_ref().filter(|_| self.kind.experts) {
            return self.mixture(normal, experts);
        }
        let (up, down) =
            if config.names.transposed { ("nd,df->nf", "nf,fd->nd") } else { ("nd,fd->nf", "nf,df->nd") };
        let project = |role| {
            let product = self.product(up, normal, role)?;
            self.biased(product, role)
        };
        let function = config.activation.function();
        let active = if config.gated {
            let (gate, up) = (project(Role::Gate)?, project(Role::Up)?);
            nn::gated(&self.at(Role::Gate), gate, up, function)?
        } else {
            nn::unary(&self.at(Role::Up), project(Role::Up)?, function)?
        };
        Ok((self.product(down, active, Role::Down)?, Vec::new()))
    }
}
